"""LVIS v1: instances of 1203 classes on COCO's images.

The classes are read from its files. LVIS does not split COCO's images as COCO does, so the folder of an image
is taken from its `coco_url`.
"""

from __future__ import annotations

import functools

from mask2former.data.datasets.coco import Row, categories_in, instance_categories, load_instances
from mask2former.data.datasets.files import datasets_root
from mask2former.data.datasets.registration import Facts, register
from mask2former.data.load_context import LoadContext

JSON_FILES = {
    "lvis_v1_train": "lvis_v1_train",
    "lvis_v1_val": "lvis_v1_val",
    "lvis_v1_test_dev": "lvis_v1_image_info_test_dev",
    "lvis_v1_test_challenge": "lvis_v1_image_info_test_challenge",
}


def register_lvis() -> None:
    """Register LVIS v1 under its published names."""
    load = functools.partial(load_instances, image_file=_path_in_url)
    for name, file in JSON_FILES.items():
        register(name, {"evaluator_type": "lvis"}, functools.partial(_facts, f"lvis/{file}.json"), load)


def _facts(json_file: str, context: LoadContext) -> Facts:
    path = str(datasets_root() / json_file)
    classes = instance_categories(categories_in(path, context=context))
    return {"image_root": str(datasets_root() / "coco"), "json_file": path, **classes}


def _path_in_url(image: Row) -> str:
    """Return `train2017/000000391895.jpg` for `http://images.cocodataset.org/train2017/000000391895.jpg`."""
    return "/".join(image["coco_url"].split("/")[-2:])
