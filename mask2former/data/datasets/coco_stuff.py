"""COCO-Stuff 10k: 171 classes, which are the 182 labels without the things that occur in no image."""

from __future__ import annotations

import functools

from mask2former.data.datasets.files import table
from mask2former.data.datasets.registration import Facts, register_below_root
from mask2former.data.datasets.semantic import SEMANTIC_FACTS, load_semantic

FOLDER = "coco/coco_stuff_10k"
FIRST_STUFF = 92  # labels below it are things; COCO's list of things lacks those that are in no image


def register_coco_stuff() -> None:
    """Register COCO-Stuff 10k under its published names."""
    for split in ("train", "test"):
        paths = {
            "image_root": f"{FOLDER}/images_detectron2/{split}",
            "sem_seg_root": f"{FOLDER}/annotations_detectron2/{split}",
        }
        register_below_root(f"coco_2017_{split}_stuff_10k_sem_seg", paths, semantic_facts, load_semantic)


@functools.cache
def semantic_facts() -> Facts:
    """Return the facts of the 171 classes."""
    names = {row["id"]: row["name"] for row in table("coco_stuff_labels_183")}
    return {**SEMANTIC_FACTS, "stuff_classes": [names[label] for label in contiguous_ids()]}


@functools.cache
def contiguous_ids() -> dict[int, int]:
    """Return the contiguous id of each label that is a class."""
    things = {row["id"] for row in table("coco_panoptic_133") if row["isthing"]}
    labels = [row["id"] for row in table("coco_stuff_labels_183")]
    used = [label for label in labels if label in things or label >= FIRST_STUFF]
    return {label: i for i, label in enumerate(used)}
