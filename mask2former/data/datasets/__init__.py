"""The datasets known by name; one module for each family."""

from mask2former.data.datasets.coco import (
    register_coco,
    register_coco_instances,
    register_coco_panoptic,
    register_panoptic_below_root,
)
from mask2former.data.datasets.shapes import CATEGORIES, SPLITS

__all__ = ["register_coco_instances", "register_coco_panoptic"]

SHAPES = {
    f"shapes_panoptic_{split}": {
        "image_root": f"shapes/{split}",
        "panoptic_root": f"shapes/panoptic_{split}",
        "panoptic_json": f"shapes/annotations/panoptic_{split}.json",
        "json_file": f"shapes/annotations/instances_{split}.json",
    }
    for split in SPLITS
}

register_coco()
for _name, _paths in SHAPES.items():
    register_panoptic_below_root(_name, _paths, lambda: CATEGORIES)
