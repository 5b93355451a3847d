"""ADE20K: SceneParse150 as semantic, instance and panoptic dataset, and the full set of 847 classes.

The ids of the 100 things are scattered among the 150 classes. Label maps are those of
`annotations_detectron2`, whose values are contiguous ids; the id of an image is its name.
"""

from __future__ import annotations

import functools

from mask2former.data.catalog import Metadata, Record
from mask2former.data.datasets.coco import (
    INSTANCE_FACTS,
    PANOPTIC_FACTS,
    instance_categories,
    load_instances,
    load_panoptic,
    panoptic_categories,
)
from mask2former.data.datasets.files import require_path, table
from mask2former.data.datasets.registration import Facts, register_below_root
from mask2former.data.datasets.semantic import SEMANTIC_FACTS, load_semantic
from mask2former.data.load_context import LoadContext

FOLDER, FULL_FOLDER = "ADEChallengeData2016", "ADE20K_2021_17_01"
SPLITS = {"train": "training", "val": "validation"}
FULL_IGNORE_LABEL = 65535


def register_ade20k() -> None:
    """Register ADE20K under its published names."""
    for split, long in SPLITS.items():
        images = {"image_root": f"{FOLDER}/images/{long}"}
        semantic = {**images, "sem_seg_root": f"{FOLDER}/annotations_detectron2/{long}"}
        instance = {**images, "json_file": f"{FOLDER}/ade20k_instance_{split}.json"}
        panoptic = {
            **semantic,
            **instance,
            "panoptic_root": f"{FOLDER}/ade20k_panoptic_{split}",
            "panoptic_json": f"{FOLDER}/ade20k_panoptic_{split}.json",
        }
        full = {
            "image_root": f"{FULL_FOLDER}/images_detectron2/{long}",
            "sem_seg_root": f"{FULL_FOLDER}/annotations_detectron2/{long}",
        }
        register_below_root(f"ade20k_sem_seg_{split}", semantic, semantic_facts, load_semantic)
        register_below_root(f"ade20k_instance_{split}", instance, instance_facts, load_instances)
        register_below_root(f"ade20k_panoptic_{split}", panoptic, panoptic_facts, load_panoptic_and_semantic)
        register_below_root(f"ade20k_full_sem_seg_{split}", full, full_facts, load_semantic)


@functools.cache
def semantic_facts() -> Facts:
    """Return the facts of the 150 classes."""
    rows = table("ade20k_150")
    return {
        **SEMANTIC_FACTS,
        "stuff_classes": [row["name"] for row in rows],
        "stuff_colors": [row["color"] for row in rows],
        **_submission_facts(),
    }


@functools.cache
def instance_facts() -> Facts:
    """Return the facts of the 100 things, numbered 0..99 in the order of the 150 classes."""
    things = [row for row in table("ade20k_150") if row["isthing"]]
    return {**INSTANCE_FACTS, **instance_categories(things)}


@functools.cache
def panoptic_facts() -> Facts:
    """Return the facts of the 150 classes, 100 of which are things."""
    categories = panoptic_categories(table("ade20k_150"))
    return {
        **PANOPTIC_FACTS,
        **categories,
        "evaluator_type": "ade20k_panoptic_seg",
        **_submission_facts(),
    }


def _submission_facts() -> Facts:
    return {
        "official_label_ids": [row["png_value"] for row in table("ade20k_150")],
        "official_ignore_label": 0,
    }


@functools.cache
def full_facts() -> Facts:
    """Return the facts of the 847 classes."""
    names = [row["name"] for row in table("ade20k_full_847")]
    return {**SEMANTIC_FACTS, "stuff_classes": names, "ignore_label": FULL_IGNORE_LABEL}


def load_panoptic_and_semantic(metadata: Metadata, context: LoadContext) -> list[Record]:
    """Return panoptic records; the label maps must exist, as they label more pixels than the PNGs."""
    require_path(metadata.sem_seg_root)
    return load_panoptic(metadata, context)
