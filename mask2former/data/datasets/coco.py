"""COCO's two formats, instances and panoptic, for COCO 2017 itself and for custom datasets.

Registering reads nothing. Annotations are read with the records, categories when a fact is needed that was
not given. Contiguous class ids follow the order of the dataset's category ids.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Container
from operator import itemgetter
from pathlib import Path
from typing import Any

from mask2former.data.catalog import Metadata, Record
from mask2former.data.datasets.files import load_json, require_path, table
from mask2former.data.datasets.registration import Facts, register, register_below_root
from mask2former.data.errors import DatasetError
from mask2former.data.ground_truth.polygons import is_polygon
from mask2former.data.load_context import LoadContext
from mask2former.utils.label_maps import IGNORE_LABEL
from mask2former.utils.storage import PathLike, to_path

logger = logging.getLogger(__name__)
Row = dict[str, Any]  # an entry of a JSON's lists: an image, an annotation, a segment or a category
XYWH = 1  # Detectron2's BoxMode.XYWH_ABS
INSTANCE_FACTS: Facts = {"evaluator_type": "coco"}
PANOPTIC_FACTS: Facts = {
    "evaluator_type": "coco_panoptic_seg",
    "ignore_label": IGNORE_LABEL,
    "label_divisor": 1000,
}

# Paths below the root of all datasets.
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
    """Register a COCO instance JSON and its folder of images as `name`.

    `metadata` holds further facts. The classes are the JSON's `categories`.
    """
    facts = {"json_file": str(json_file), "image_root": str(image_root), **INSTANCE_FACTS, **metadata}

    def derive(context: LoadContext) -> Facts:
        return instance_categories(categories_in(json_file, context=context))

    register(name, facts, derive, load_instances)


def register_coco_panoptic(
    name: str,
    metadata: Facts,
    image_root: PathLike,
    panoptic_root: PathLike,
    panoptic_json: PathLike,
    instances_json: PathLike | None = None,
    sem_seg_root: PathLike | None = None,
) -> None:
    """Register a COCO panoptic JSON, its folder of PNGs and its folder of images as `name`.

    Args:
        name: the new dataset.
        metadata: further facts.
        image_root: the images.
        panoptic_root: the panoptic PNGs.
        panoptic_json: the annotations; the classes are its `categories`.
        instances_json: the ground truth for AP, which is not measured without it.
        sem_seg_root: label maps with contiguous ids. Without them, or where that folder does not exist, they
            are derived from the panoptic PNGs.
    """
    paths = {
        "image_root": image_root,
        "panoptic_root": panoptic_root,
        "panoptic_json": panoptic_json,
        "sem_seg_root": sem_seg_root,
        "json_file": instances_json,
    }
    given = {key: str(path) for key, path in paths.items() if path is not None}

    def derive(context: LoadContext) -> Facts:
        return panoptic_categories(categories_in(panoptic_json, "isthing", context=context))

    register(name, {**given, **PANOPTIC_FACTS, **metadata}, derive, load_panoptic)


def register_coco() -> None:
    """Register COCO 2017 under its published names."""
    categories = table("coco_panoptic_133")
    things = [category for category in categories if category["isthing"]]
    for name, paths in INSTANCES.items():
        register_below_root(name, paths, {**INSTANCE_FACTS, **instance_categories(things)}, load_instances)
    for name, paths in PANOPTIC.items():
        register_below_root(name, paths, {**PANOPTIC_FACTS, **panoptic_categories(categories)}, load_panoptic)


def semantic_categories(categories: list[Row], name: str = "name") -> Facts:
    """Return the facts that follow from the classes of label maps; `name` is the key of their names."""
    names = [category[name] for category in categories]
    return {"stuff_classes": names, **_colors("stuff_colors", categories)}


def instance_categories(categories: list[Row]) -> Facts:
    """Return the facts that follow from the categories of an instance JSON: names, colors, ids."""
    ids = {category["id"]: i for i, category in enumerate(categories)}
    return {
        "thing_classes": [category["name"] for category in categories],
        "thing_dataset_id_to_contiguous_id": ids,
        "thing_ids": list(ids.values()),
        **_colors("thing_colors", categories),
    }


def panoptic_categories(categories: list[Row]) -> Facts:
    """Return the same for a panoptic JSON: `stuff_` facts cover all classes, `thing_` facts the things."""
    ids = {category["id"]: i for i, category in enumerate(categories)}
    things = [category for category in categories if category["isthing"]]
    thing_ids = {thing["id"]: ids[thing["id"]] for thing in things}
    return {
        "thing_classes": [category["name"] for category in things],
        "thing_dataset_id_to_contiguous_id": thing_ids,
        "stuff_dataset_id_to_contiguous_id": ids,
        "thing_ids": list(thing_ids.values()),
        **_colors("thing_colors", things),
        **semantic_categories(categories),
    }


def categories_in(path: PathLike, *keys: str, context: LoadContext) -> list[Row]:
    """Return the categories of a COCO JSON, sorted by id; each has `id`, `name` and `keys`.

    Raises:
        DatasetError: the file is missing, a key is missing, or an id occurs twice.
    """
    categories: list[Row] = load_json(path, "categories", context=context)["categories"]
    for key, category in itertools.product(("id", "name", *keys), categories):
        if key not in category:
            raise DatasetError(f"{path}, categories: no '{key}' in {_brief(category)}")
    ids = Counter(category["id"] for category in categories)
    if twice := [str(number) for number, count in ids.items() if count > 1]:
        raise DatasetError(f"{path}, categories: the id {', '.join(twice)} occurs twice")
    return sorted(categories, key=itemgetter("id"))


def _colors(key: str, categories: list[Row]) -> Facts:
    known = all("color" in category for category in categories)
    return {key: [category["color"] for category in categories]} if known else {}


def load_instances(
    metadata: Metadata, context: LoadContext, image_file: Callable[[Row], str] = itemgetter("file_name")
) -> list[Record]:
    """Return the records of `json_file` and `image_root`, one for each image that the JSON lists.

    A file without `annotations` (as those of COCO's test sets) gives records without them. `image_file`
    returns the path below `image_root` of a row of `images`.

    Raises:
        DatasetError: a file or folder is missing, or the JSON is broken.
    """
    path, ids = metadata.json_file, metadata.thing_dataset_id_to_contiguous_id
    content = load_json(path, "images", context=context)  # before the images: a script may have to make it
    root = require_path(metadata.image_root)
    records = _convert_rows(
        path, content["images"], lambda row: _image_record(row, root / image_file(row)), context
    )
    if "annotations" not in content:
        return records
    annotations: dict[Any, list[Row]] = {record["image_id"]: [] for record in records}
    rows = _convert_rows(path, content["annotations"], lambda row: _instance(row, annotations, ids), context)
    masked = [row for row in rows if row["segmentation"]]
    for row in masked:
        annotations[row["image_id"]].append(row)
    if dropped := len(rows) - len(masked):
        logger.warning("%s: left out %d annotations without an RLE or a polygon of 3 points", path, dropped)
    return [{**record, "annotations": annotations[record["image_id"]]} for record in records]


def load_panoptic(metadata: Metadata, context: LoadContext) -> list[Record]:
    """Return the records of `panoptic_json`, `panoptic_root` and `image_root`, one for each annotated image.

    They name label maps in `sem_seg_root` where that folder exists.

    Raises:
        DatasetError: a file or folder is missing, or the JSON is broken.
    """
    path, ids = metadata.panoptic_json, metadata.stuff_dataset_id_to_contiguous_id
    things = metadata.thing_dataset_id_to_contiguous_id
    content = load_json(path, "images", "annotations", context=context)
    images = {image["id"]: image for image in content["images"]}
    image_root, panoptic_root = require_path(metadata.image_root), require_path(metadata.panoptic_root)
    sem_seg_root = metadata.get("sem_seg_root")
    has_label_maps = bool(sem_seg_root) and to_path(sem_seg_root).is_dir()

    def convert(row: Row) -> Record:
        image = images[_known_image(row, images)]
        png = row["file_name"]
        return {
            **_image_record(image, image_root / image["file_name"]),
            "pan_seg_file_name": str(panoptic_root / png),
            **({"sem_seg_file_name": str(to_path(sem_seg_root) / png)} if has_label_maps else {}),
            "segments_info": [
                {
                    "id": segment["id"],
                    "category_id": _contiguous(segment, ids),
                    "isthing": segment["category_id"] in things,
                    "iscrowd": segment.get("iscrowd", 0),
                }
                for segment in row["segments_info"]
            ],
        }

    return _convert_rows(path, content["annotations"], convert, context)


def load_panoptic_and_semantic(metadata: Metadata, context: LoadContext) -> list[Record]:
    """Return panoptic records; the label maps must exist, as they label more pixels than the PNGs."""
    require_path(metadata.sem_seg_root)
    return load_panoptic(metadata, context)


def _image_record(image: Row, file: Path) -> Record:
    return {
        "file_name": str(file),
        "image_id": image["id"],
        **{key: image[key] for key in ("height", "width")},
    }


def _instance(row: Row, images: Container[Any], ids: dict[int, int]) -> Row:
    image_id, shape = _known_image(row, images), row["segmentation"]
    if isinstance(shape, list):
        shape = [points for points in shape if is_polygon(points)]
    return {
        "image_id": image_id,
        "category_id": _contiguous(row, ids),
        "iscrowd": row.get("iscrowd", 0),
        "segmentation": shape,
        **({"bbox": row["bbox"], "bbox_mode": XYWH} if "bbox" in row else {}),
    }


def _known_image(row: Row, images: Container[Any]) -> Any:
    if row["image_id"] not in images:
        raise DatasetError("no such id among 'images'")
    return row["image_id"]


def _contiguous(row: Row, ids: dict[int, int]) -> int:
    category = row["category_id"]
    if category not in ids:
        raise DatasetError(f"category_id {category!r} is not among the categories {list(ids)}")
    return ids[category]


def _convert_rows(
    path: str, rows: list[Row], convert: Callable[[Row], Row], context: LoadContext
) -> list[Row]:
    """Return `convert(row)` of each row; its errors get the file and the image id."""

    def convert_one(row: Row) -> Row:
        try:
            return convert(row)
        except KeyError as key:
            what = f"no {key} in {_brief(row)}"
        except DatasetError as error:
            what = str(error)
        raise DatasetError(f"{path}, image id {row.get('image_id', row.get('id'))!r}: {what}")

    return context.convert_each(convert_one, rows)


def _brief(row: Row) -> str:
    text = repr(row)
    return text if len(text) <= 200 else text[:197] + "..."
