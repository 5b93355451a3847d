"""COCO-Stuff 10k: 171 classes, which are the 182 labels without the things that occur in no image."""

from mask2former.data.datasets.coco import semantic_categories
from mask2former.data.datasets.files import table
from mask2former.data.datasets.registration import register_below_root
from mask2former.data.datasets.semantic import SEMANTIC_FACTS, load_semantic

FOLDER = "coco/coco_stuff_10k"
FIRST_STUFF = 92  # labels below it are things; COCO's list of things lacks those that are in no image
THINGS = {row["id"] for row in table("coco_panoptic_133") if row["isthing"]}
CLASSES = [row for row in table("coco_stuff_labels_183") if row["id"] in THINGS or row["id"] >= FIRST_STUFF]
CONTIGUOUS_IDS = {row["id"]: i for i, row in enumerate(CLASSES)}


def register_coco_stuff() -> None:
    """Register COCO-Stuff 10k under its published names."""
    facts = {**SEMANTIC_FACTS, **semantic_categories(CLASSES)}
    for split in ("train", "test"):
        paths = {
            "image_root": f"{FOLDER}/images_detectron2/{split}",
            "sem_seg_root": f"{FOLDER}/annotations_detectron2/{split}",
        }
        register_below_root(f"coco_2017_{split}_stuff_10k_sem_seg", paths, facts, load_semantic)
