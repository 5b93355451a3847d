"""COCO's two formats, instances and panoptic, for COCO 2017 itself and for custom datasets.

Registering reads nothing. Annotations are read with the records, categories when a fact is needed that was
not given. Contiguous class ids follow the order of the dataset's category ids.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Container
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

from mask2former.data.catalog import Metadata, Record
from mask2former.data.datasets.files import load_json, require_path, table
from mask2former.data.datasets.registration import Facts, Load, register, register_below_root
from mask2former.data.errors import DatasetError, first_few
from mask2former.data.load_context import LoadContext
from mask2former.drawing.colors import class_colors
from mask2former.utils import coco_values as values
from mask2former.utils.coco_values import Row
from mask2former.utils.label_maps import IGNORE_LABEL
from mask2former.utils.messages import brief
from mask2former.utils.storage import PathLike, is_file, to_path

logger = logging.getLogger(__name__)
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
    register_instance_json(name, {**INSTANCE_FACTS, **metadata}, json_file, image_root, load_instances)


def register_instance_json(
    name: str, facts: Facts, json_file: PathLike, image_root: PathLike, load: Load
) -> None:
    """Register a JSON whose `categories` are the classes, and its folder of images, as `name`."""

    def derive(context: LoadContext) -> Facts:
        return instance_categories(categories_in(json_file, context=context))

    register(name, {"json_file": str(json_file), "image_root": str(image_root), **facts}, derive, load)


def register_coco_panoptic(
    name: str,
    metadata: Facts,
    image_root: PathLike,
    panoptic_root: PathLike,
    panoptic_json: PathLike,
    instances_json: PathLike | None = None,
    sem_seg_root: PathLike | None = None,
    *,
    load: Load | None = None,
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
        load: reads the records; the default is `load_panoptic`.
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

    register(name, {**given, **PANOPTIC_FACTS, **metadata}, derive, load or load_panoptic)


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
    """Return `checked_categories` of a COCO JSON; DatasetError also if the file is missing."""
    return checked_categories(load_json(path, "categories", context=context), path, *keys)


def checked_categories(content: Row, path: PathLike, *keys: str) -> list[Row]:
    """Return the categories of a COCO JSON's content, sorted by id; each has `id`, `name` and `keys`.

    Raises:
        DatasetError: a key is missing, or an id occurs twice; the message names `path`.
    """
    try:
        categories = [values.category(row, *keys) for row in values.rows(content, "categories")]
    except ValueError as error:
        raise DatasetError(f"{path}, categories: {error}") from None
    categories.sort(key=itemgetter("id"))
    for key in ("id", "name"):
        counts = Counter(category[key] for category in categories)
        if twice := [str(value) for value, count in counts.items() if count > 1]:
            what = f"{path}, categories: the {key} {first_few(twice)} occurs twice"
            if key == "id":
                raise DatasetError(what)
            logger.warning("%s; its classes are kept apart by their ids", what)
    return _with_colors(path, categories)


def _with_colors(path: PathLike, categories: list[Row]) -> list[Row]:
    """Return the categories with their colors as numbers; unreadable ones get colors of ours."""
    if not all("color" in category for category in categories):
        return categories
    colors = [values.color(category["color"]) for category in categories]
    if unreadable := [
        category["name"] for category, color in zip(categories, colors, strict=True) if color is None
    ]:
        logger.warning("%s: default colors for %s, whose 'color' is unreadable", path, first_few(unreadable))
    ours = class_colors(len(categories))
    return [
        {**category, "color": color or [*other]}
        for category, color, other in zip(categories, colors, ours, strict=True)
    ]


def _colors(key: str, categories: list[Row]) -> Facts:
    known = all("color" in category for category in categories)
    return {key: [category["color"] for category in categories]} if known else {}


def _file_name(row: Row) -> str:
    return values.text(row, "file_name")


def below(root: Path, name: str) -> Path:
    """Return a path below a folder; backslashes, as tools on Windows write them, separate folders."""
    path = root / name
    return path if "\\" not in name or is_file(path) else root / name.replace("\\", "/")


def load_instances(
    metadata: Metadata,
    context: LoadContext,
    image_file: Callable[[Row], str] = _file_name,
) -> list[Record]:
    """Return the records of `json_file` and `image_root`, one for each image that the JSON lists.

    `image_file` returns the path below `image_root` of a row of `images`.

    Raises:
        DatasetError: a file or folder is missing, or the JSON is broken.
    """
    content = load_json(metadata.json_file, "images", context=context)
    return instance_records(metadata.json_file, content, metadata, context, image_file)


def instance_records(
    path: str,
    content: Row,
    metadata: Metadata,
    context: LoadContext,
    image_file: Callable[[Row], str] = _file_name,
) -> list[Record]:
    """Return the records of the content of an instance JSON; `path` names it in messages.

    If the metadata has a true `crowds_as_objects`, `iscrowd` is ignored. A file without `annotations` (as
    those of COCO's test sets) gives records without them.
    """
    ids = metadata.thing_dataset_id_to_contiguous_id
    root = require_path(metadata.image_root)  # after the JSON: a script may have to make that
    records = convert_rows(
        path, content, "images", lambda row: _image_record(row, below(root, image_file(row))), context
    )
    if "annotations" not in content:
        return records
    sizes = {record["image_id"]: (record["height"], record["width"]) for record in records}
    assumed: Counter[str] = Counter()
    convert = partial(_instance, sizes=sizes, ids=ids, assumed=assumed)
    rows = convert_rows(path, content, "annotations", convert, context)
    if metadata.get("crowds_as_objects", False):
        rows = [{**row, "iscrowd": 0} for row in rows]
    annotations: dict[Any, list[Row]] = {record["image_id"]: [] for record in records}
    masked = [row for row in rows if row["segmentation"]]
    for row in masked:
        annotations[row["image_id"]].append(row)
    if dropped := len(rows) - len(masked):
        message = "%s: left out %d annotations without a mask, which is an RLE or a polygon of 3 points"
        logger.warning(message, path, dropped)
    for form, count in assumed.items():
        logger.warning("%s: the 'segmentation' of %d annotations is %s", path, count, form)
    return [{**record, "annotations": annotations[record["image_id"]]} for record in records]


def load_panoptic(
    metadata: Metadata,
    context: LoadContext,
    image_file: Callable[[Row], str] = _file_name,
    png_file: Callable[[Row], str] = _file_name,
) -> list[Record]:
    """Return the records of `panoptic_json`, `panoptic_root` and `image_root`, one for each annotated image.

    They name label maps in `sem_seg_root` where that folder exists. `image_file` is that of `load_instances`,
    and `png_file` returns the path below `panoptic_root` from a row of `annotations`.

    Raises:
        DatasetError: a file or folder is missing, or the JSON is broken.
    """
    path, ids = metadata.panoptic_json, metadata.stuff_dataset_id_to_contiguous_id
    things = metadata.thing_dataset_id_to_contiguous_id
    content = load_json(path, "images", "annotations", context=context)
    image_root, panoptic_root = require_path(metadata.image_root), require_path(metadata.panoptic_root)
    images = {
        record["image_id"]: record
        for record in convert_rows(
            *(path, content, "images"),
            lambda row: _image_record(row, below(image_root, image_file(row))),
            context,
        )
    }
    sem_seg_root = metadata.get("sem_seg_root")
    has_label_maps = bool(sem_seg_root) and to_path(sem_seg_root).is_dir()

    def convert(row: Row) -> Record:
        image = images[known_id(row, "image", images)]
        png = png_file(row)
        return {
            **image,
            "pan_seg_file_name": str(panoptic_root / png),
            **({"sem_seg_file_name": str(to_path(sem_seg_root) / png)} if has_label_maps else {}),
            "segments_info": [
                {
                    **segment,
                    "category_id": ids[segment["category_id"]],
                    "isthing": segment["category_id"] in things,
                }
                for segment in values.segments(values.rows(row, "segments_info"), ids)
            ],
        }

    return convert_rows(path, content, "annotations", convert, context)


def load_panoptic_and_semantic(metadata: Metadata, context: LoadContext) -> list[Record]:
    """Return panoptic records; the label maps must exist, as they label more pixels than the PNGs."""
    require_path(metadata.sem_seg_root)
    return load_panoptic(metadata, context)


def _image_record(image: Row, file: Path) -> Record:
    return {
        "file_name": str(file),
        "image_id": values.image_key(image, "id"),
        **{key: values.whole_number(image, key, least=1) for key in ("height", "width")},
    }


def _instance(
    row: Row, sizes: dict[int | str, tuple[int, int]], ids: dict[int, int], assumed: Counter[str]
) -> Row:
    """Return the annotation of a record, whose `segmentation` is None if it has no mask."""
    image_id = known_id(row, "image", sizes)
    mask, form = values.segmentation(row.get("segmentation"), sizes[image_id])
    assumed.update([form] if form else [])
    box = values.box(row)
    if row.get("area") is not None:
        values.area(row["area"])  # which AP reads
    return {
        "image_id": image_id,
        "category_id": ids[values.category_id(row, ids)],
        "iscrowd": values.flag({"iscrowd": 0, **row}, "iscrowd"),
        "segmentation": mask,
        **({} if box is None else {"bbox": box, "bbox_mode": XYWH}),
    }


def known_id(row: Row, subject: str, known: Container[Any]) -> int | str:
    """Return the id of the image or other `subject` that a row belongs to, which must be `known`."""
    id = values.image_key(row, f"{subject}_id")
    if id not in known:
        raise DatasetError(f"no such id among '{subject}s'")
    return id


def convert_rows(
    path: str,
    content: Row,
    key: str,
    convert: Callable[[Row], Row],
    context: LoadContext,
    subject: str = "image",
) -> list[Row]:
    """Return `convert(row)` of each row of `content[key]`; its errors get the file and the image's id.

    Rows belong to a `subject`: their `image_id` is that of an image.
    """

    def convert_one(row: Row) -> Row:
        try:
            return convert(row)
        except KeyError as key:
            what = f"no {key} in {brief(row, 200)}"
        except ValueError as error:
            what = str(error)
        id = brief(row.get(f"{subject}_id", row.get("id")))
        raise DatasetError(f"{path}, {subject} id {id}: {what}")

    try:
        found = values.rows(content, key)
    except ValueError as error:
        raise DatasetError(f"{path}: {error}") from None
    return context.convert_each(convert_one, found)
