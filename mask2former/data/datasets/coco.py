"""COCO's two formats, instances and panoptic, for COCO 2017 itself and for anybody's files.

Registering reads nothing: files are read when the dataset is got from the catalog, categories when a fact is
asked for that was not given. Contiguous class ids follow the order of the dataset's category ids.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from operator import itemgetter
from pathlib import Path
from typing import Any

from mask2former.data.catalog import Metadata, Record
from mask2former.data.datasets.files import read_json, require, table
from mask2former.data.datasets.registration import Facts, register, register_below_root
from mask2former.data.errors import DatasetError, each_converted
from mask2former.data.ground_truth.polygons import is_polygon
from mask2former.utils.label_maps import IGNORE_LABEL
from mask2former.utils.storage import PathLike, to_path

logger = logging.getLogger(__name__)
ImageFile = Callable[[Facts], str]
XYWH = 1  # Detectron2's BoxMode.XYWH_ABS
UNKNOWN_IMAGE = "no such id among 'images'"
INSTANCE_FACTS: Facts = {"evaluator_type": "coco"}
PANOPTIC_FACTS: Facts = {
    "evaluator_type": "coco_panoptic_seg",
    "ignore_label": IGNORE_LABEL,
    "label_divisor": 1000,
}

# Below the root of all datasets.
INSTANCES = {
    name: {"image_root": f"coco/{images}2017", "json_file": f"coco/annotations/{annotations}2017.json"}
    for name, images, annotations in (
        ("coco_2017_train", "train", "instances_train"),
        ("coco_2017_val", "val", "instances_val"),
        ("coco_2017_test-dev", "test", "image_info_test-dev"),
    )
}
PANOPTIC = {
    f"coco_2017_{split}_panoptic{suffix}": {
        "image_root": f"coco/{split}2017",
        "panoptic_root": f"coco/panoptic_{split}2017",
        "panoptic_json": f"coco/annotations/panoptic_{split}2017.json",
        "sem_seg_root": f"coco/panoptic_semseg_{split}2017",
        "json_file": f"coco/annotations/instances_{split}2017.json",
    }
    for split in ("train", "val")
    for suffix in ("", "_with_sem_seg")
}


def register_coco_instances(name: str, metadata: Facts, json_file: PathLike, image_root: PathLike) -> None:
    """Make a COCO instance JSON and a folder of images known as `name`.

    `metadata` holds facts beyond those; the classes are those of the JSON's `categories`.
    """
    facts = {"json_file": str(json_file), "image_root": str(image_root), **INSTANCE_FACTS, **metadata}
    derived = functools.cache(lambda: instance_categories(categories_in(json_file)))
    register(name, facts, derived, load_instances)


def register_coco_panoptic(
    name: str,
    metadata: Facts,
    image_root: PathLike,
    panoptic_root: PathLike,
    panoptic_json: PathLike,
    instances_json: PathLike | None = None,
    sem_seg_root: PathLike | None = None,
) -> None:
    """Make a COCO panoptic JSON, its folder of PNGs and a folder of images known as `name`.

    `sem_seg_root` holds label maps with contiguous ids; without it, or where that folder does not exist, they
    are derived from the panoptic PNGs. `instances_json` is what AP is measured against, if at all.
    """
    paths = {
        "image_root": image_root,
        "panoptic_root": panoptic_root,
        "panoptic_json": panoptic_json,
        "sem_seg_root": sem_seg_root,
        "json_file": instances_json,
    }
    given = {key: str(path) for key, path in paths.items() if path is not None}
    derived = functools.cache(lambda: panoptic_categories(categories_in(panoptic_json, "isthing")))
    register(name, {**given, **PANOPTIC_FACTS, **metadata}, derived, load_panoptic)


def register_coco() -> None:
    """COCO 2017 under its published names."""
    for name, paths in INSTANCES.items():
        register_below_root(name, paths, _coco_instance_facts, load_instances)
    for name, paths in PANOPTIC.items():
        register_below_root(name, paths, _coco_panoptic_facts, load_panoptic)


@functools.cache
def _coco_instance_facts() -> Facts:
    things = [category for category in table("coco_panoptic_133") if category["isthing"]]
    return {**INSTANCE_FACTS, **instance_categories(things)}


@functools.cache
def _coco_panoptic_facts() -> Facts:
    return {**PANOPTIC_FACTS, **panoptic_categories(table("coco_panoptic_133"))}


def instance_categories(categories: list[Facts]) -> Facts:
    """The facts that follow from the categories of an instance JSON: names, colors, ids."""
    ids = {category["id"]: i for i, category in enumerate(categories)}
    return {
        "thing_classes": [category["name"] for category in categories],
        "thing_dataset_id_to_contiguous_id": ids,
        "thing_ids": list(ids.values()),
        **_colors("thing_colors", categories),
    }


def panoptic_categories(categories: list[Facts]) -> Facts:
    """The same of a panoptic JSON: `stuff_` facts are of all classes, `thing_` facts of things alone."""
    ids = {category["id"]: i for i, category in enumerate(categories)}
    things = [category for category in categories if category["isthing"]]
    return {
        "thing_classes": [category["name"] for category in things],
        "stuff_classes": [category["name"] for category in categories],
        "thing_dataset_id_to_contiguous_id": {thing["id"]: ids[thing["id"]] for thing in things},
        "stuff_dataset_id_to_contiguous_id": ids,
        "thing_ids": [ids[thing["id"]] for thing in things],
        **_colors("thing_colors", things),
        **_colors("stuff_colors", categories),
    }


def categories_in(path: PathLike, *keys: str) -> list[Facts]:
    """The categories of a COCO JSON in the order of their ids; each has `id`, `name` and `keys`.

    Raises:
        DatasetError: no such file, one of those is missing, or an id occurs twice.
    """
    categories: list[Facts] = read_json(path, "categories")["categories"]
    for key, category in itertools.product(("id", "name", *keys), categories):
        if key not in category:
            raise DatasetError(f"{path}, categories: no '{key}' in {_brief(category)}")
    ids = Counter(category["id"] for category in categories)
    if twice := [str(number) for number, count in ids.items() if count > 1]:
        raise DatasetError(f"{path}, categories: the id {', '.join(twice)} occurs twice")
    return sorted(categories, key=lambda category: category["id"])


def _colors(key: str, categories: list[Facts]) -> Facts:
    known = all("color" in category for category in categories)
    return {key: [category["color"] for category in categories]} if known else {}


def load_instances(metadata: Metadata, image_file: ImageFile = itemgetter("file_name")) -> list[Record]:
    """The records of `json_file` and `image_root`, one for each image that the JSON lists.

    A file without `annotations` (as those of COCO's test sets) gives records without. `image_file` tells the
    path below `image_root` of one of its `images`.

    Raises:
        DatasetError: a file or folder is missing, or the JSON is broken.
    """
    path = metadata.json_file
    content = read_json(path, "images")  # before the images: a script may have to make it
    root = require(metadata.image_root)
    records = _converted(path, content["images"], _image_record, root, image_file)
    if "annotations" in content:
        grouped = _instances_by_image(
            path,
            content["annotations"],
            {record["image_id"] for record in records},
            metadata.thing_dataset_id_to_contiguous_id,
        )
        for record in records:
            record["annotations"] = grouped.get(record["image_id"], [])
    return records


def _instances_by_image(
    path: str, annotations: list[Facts], images: set[Any], ids: dict[int, int]
) -> dict[Any, list[Facts]]:
    grouped = defaultdict(list)
    instances = _converted(path, annotations, _instance, images, ids)
    for instance in instances:
        if instance["segmentation"]:
            grouped[instance["image_id"]].append(instance)
    dropped = len(instances) - sum(map(len, grouped.values()))
    if dropped:
        logger.warning("%s: left out %d annotations without an RLE or a polygon of 3 points", path, dropped)
    return grouped


def load_panoptic(metadata: Metadata) -> list[Record]:
    """The records of `panoptic_json`, `panoptic_root` and `image_root`, one for each annotated image.

    They name label maps in `sem_seg_root` where that folder exists.

    Raises:
        DatasetError: a file or folder is missing, or the JSON is broken.
    """
    path, ids = metadata.panoptic_json, metadata.stuff_dataset_id_to_contiguous_id
    things = metadata.thing_dataset_id_to_contiguous_id
    content = read_json(path, "images", "annotations")
    images = {image["id"]: image for image in content["images"]}
    roots = (
        require(metadata.image_root),
        require(metadata.panoptic_root),
        _existing(metadata.get("sem_seg_root")),
    )
    return _converted(path, content["annotations"], _panoptic_record, images, roots, ids, things)


def _image_record(image: Facts, root: Path, image_file: ImageFile = itemgetter("file_name")) -> Record:
    return {
        "file_name": str(root / image_file(image)),
        "image_id": image["id"],
        "height": image["height"],
        "width": image["width"],
    }


def _instance(annotation: Facts, images: set[Any], ids: dict[int, int]) -> Facts:
    if annotation["image_id"] not in images:
        raise DatasetError(UNKNOWN_IMAGE)
    shape = annotation["segmentation"]
    if isinstance(shape, list):
        shape = [points for points in shape if is_polygon(points)]
    return {
        "image_id": annotation["image_id"],
        "category_id": _contiguous(annotation, ids),
        "iscrowd": annotation.get("iscrowd", 0),
        "segmentation": shape,
        **({"bbox": annotation["bbox"], "bbox_mode": XYWH} if "bbox" in annotation else {}),
    }


def _panoptic_record(
    annotation: Facts,
    images: dict[Any, Facts],
    roots: tuple[Path, Path, Path | None],
    ids: dict[int, int],
    things: Collection[int],
) -> Record:
    if annotation["image_id"] not in images:
        raise DatasetError(UNKNOWN_IMAGE)
    image_root, panoptic_root, sem_seg_root = roots
    semantic = {"sem_seg_file_name": str(sem_seg_root / annotation["file_name"])} if sem_seg_root else {}
    return {
        **_image_record(images[annotation["image_id"]], image_root),
        "pan_seg_file_name": str(panoptic_root / annotation["file_name"]),
        **semantic,
        "segments_info": [_segment(segment, ids, things) for segment in annotation["segments_info"]],
    }


def _segment(segment: Facts, ids: dict[int, int], things: Collection[int]) -> Facts:
    return {
        "id": segment["id"],
        "category_id": _contiguous(segment, ids),
        "isthing": segment["category_id"] in things,
        "iscrowd": segment.get("iscrowd", 0),
    }


def _contiguous(item: Facts, ids: dict[int, int]) -> int:
    category = item["category_id"]
    if category not in ids:
        raise DatasetError(f"category_id {category!r} is not among the categories {list(ids)}")
    return ids[category]


def _converted(path: str, items: list[Facts], convert: Callable[..., Facts], *arguments: Any) -> list[Facts]:
    """`convert(item, *arguments)` of each; what is wrong with an item is reported with its file and image."""

    def convert_one(item: Facts) -> Facts:
        try:
            return convert(item, *arguments)
        except KeyError as key:
            what = f"no {key} in {_brief(item)}"
        except DatasetError as error:
            what = str(error)
        raise DatasetError(f"{path}, image id {item.get('image_id', item.get('id'))!r}: {what}")

    return each_converted(convert_one, items)


def _brief(item: Facts) -> str:
    text = repr(item)
    return text if len(text) <= 200 else text[:197] + "..."


def _existing(folder: str | None) -> Path | None:
    return to_path(folder) if folder and to_path(folder).is_dir() else None
