"""ADE20K: SceneParse150 as semantic, instance and panoptic dataset, and the full set of 847 classes.

The ids of the 100 things are scattered among the 150 classes. Label maps are those of
`annotations_detectron2`, whose values are contiguous ids; the id of an image is its name.
"""

from __future__ import annotations

from mask2former.data.datasets.coco import (
    INSTANCE_FACTS,
    PANOPTIC_FACTS,
    instance_categories,
    load_instances,
    load_panoptic_and_semantic,
    panoptic_categories,
    semantic_categories,
)
from mask2former.data.datasets.files import table
from mask2former.data.datasets.registration import Facts, register_below_root
from mask2former.data.datasets.semantic import SEMANTIC_FACTS, load_semantic

FOLDER, FULL_FOLDER = "ADEChallengeData2016", "ADE20K_2021_17_01"
SPLITS = {"train": "training", "val": "validation"}
CLASSES = table("ade20k_150")
SUBMISSION: Facts = {"official_label_ids": [row["png_value"] for row in CLASSES], "official_ignore_label": 0}
SEMANTIC: Facts = {**SEMANTIC_FACTS, **semantic_categories(CLASSES), **SUBMISSION}
# The 100 things are numbered 0..99 in the order of the 150 classes.
INSTANCE: Facts = {**INSTANCE_FACTS, **instance_categories([row for row in CLASSES if row["isthing"]])}
PANOPTIC: Facts = {
    **PANOPTIC_FACTS,
    **panoptic_categories(CLASSES),
    **SUBMISSION,
    "evaluator_type": "ade20k_panoptic_seg",
}
FULL: Facts = {**SEMANTIC_FACTS, **semantic_categories(table("ade20k_full_847")), "ignore_label": 65535}


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
        register_below_root(f"ade20k_sem_seg_{split}", semantic, SEMANTIC, load_semantic)
        register_below_root(f"ade20k_instance_{split}", instance, INSTANCE, load_instances)
        register_below_root(f"ade20k_panoptic_{split}", panoptic, PANOPTIC, load_panoptic_and_semantic)
        register_below_root(f"ade20k_full_sem_seg_{split}", full, FULL, load_semantic)
