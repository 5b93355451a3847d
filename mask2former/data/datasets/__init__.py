"""The datasets known by name; one module for each family."""

import functools

from mask2former.data.custom.dataset import register_custom_dataset
from mask2former.data.datasets.ade20k import register_ade20k
from mask2former.data.datasets.cityscapes import register_cityscapes
from mask2former.data.datasets.coco import (
    PANOPTIC_FACTS,
    load_panoptic,
    panoptic_categories,
    register_coco,
    register_coco_instances,
    register_coco_panoptic,
)
from mask2former.data.datasets.coco_stuff import register_coco_stuff
from mask2former.data.datasets.lvis import register_lvis
from mask2former.data.datasets.mapillary import register_mapillary
from mask2former.data.datasets.registration import Facts, register_below_root
from mask2former.data.datasets.semantic import register_semantic
from mask2former.data.datasets.shapes import CATEGORIES, SPLITS

__all__ = [
    "register_coco_instances",
    "register_coco_panoptic",
    "register_custom_dataset",
    "register_semantic",
]

SHAPES = {
    f"shapes_panoptic_{split}": {
        "image_root": f"shapes/{split}",
        "panoptic_root": f"shapes/panoptic_{split}",
        "panoptic_json": f"shapes/annotations/panoptic_{split}.json",
        "json_file": f"shapes/annotations/instances_{split}.json",
    }
    for split in SPLITS
}


@functools.cache
def _shapes_facts() -> Facts:
    return {**PANOPTIC_FACTS, **panoptic_categories(CATEGORIES)}


for _register in (
    register_coco,
    register_ade20k,
    register_cityscapes,
    register_mapillary,
    register_coco_stuff,
    register_lvis,
):
    _register()
for _name, _paths in SHAPES.items():
    register_below_root(_name, _paths, _shapes_facts, load_panoptic)
