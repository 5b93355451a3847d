"""Checks of instance ground truth and of results before AP is computed, which turn them into plain input.

Annotations follow the rules of training data (`utils.coco_values`): the same forms of masks are read, and
annotations without a mask are left out.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from mask2former.evaluation.common.json_files import JsonObject, get_value, index_by
from mask2former.utils.coco_masks import check_points, checked_rle, sound_polygons, whole_codes
from mask2former.utils.coco_values import flag, segmentation, sides
from mask2former.utils.messages import InputError, brief

logger = logging.getLogger(__name__)

Table = Mapping[Any, JsonObject]  # by id

NO_MASK = "%s: AP leaves out %d annotations without an RLE or a polygon of 3 points"
ANNOTATION_KEYS = ("image_id", "category_id", "area", "iscrowd", "segmentation")
LVIS_KEYS = ("neg_category_ids", "not_exhaustive_category_ids")  # of images
FREQUENCIES = {"APr": "r", "APc": "c", "APf": "f"}  # name -> LVIS' mark of rare, common, frequent categories


@dataclass(frozen=True)
class GroundTruth:
    """Checked content of an instance JSON, whose annotations all have a mask."""

    images: Table
    categories: Table
    annotations: list[JsonObject]


def checked_ground_truth(
    truth: Mapping[str, Any], where: object, *, lvis_style: bool = False, crowds_as_objects: bool = False
) -> GroundTruth:
    """Return the content of COCO's instance JSON for AP; warn of annotations without a mask.

    With `crowds_as_objects`, `iscrowd` is ignored.

    Raises:
        ValueError: a key is missing, a value has the wrong type, an image or category is unknown, or a mask
            is broken; the message names `where` and the annotation.
    """
    images = index_by(get_value(truth, "images", where, list), "id", where)
    categories = index_by(get_value(truth, "categories", where, list), "id", where)
    for id, image in images.items():
        with errors_named(f"{where}: image {brief(id)}"):
            sides(image)
        for key in LVIS_KEYS if lvis_style else ():
            get_value(image, key, f"{where}: image {id}", list)
    for id, category in categories.items() if lvis_style else ():
        mark = get_value(category, "frequency", f"{where}: category {id}")
        if mark not in FREQUENCIES.values():
            raise InputError(f"{where}: category {id}: 'frequency' is {mark!r}, expected r, c or f")
    rows = get_value(truth, "annotations", where, list)
    annotations, assumed = _annotations(rows, images, categories, where)
    masked = [annotation for annotation in annotations if annotation is not None]
    if dropped := len(rows) - len(masked):
        logger.warning(NO_MASK, where, dropped)
    for form, count in assumed.items():
        logger.warning("%s: the 'segmentation' of %d annotations is %s", where, count, form)
    if crowds_as_objects:
        masked = [{**annotation, "iscrowd": 0} for annotation in masked]
    return GroundTruth(images, categories, masked)


def _annotations(
    rows: list[Any], images: Table, categories: Table, where: object
) -> tuple[list[JsonObject | None], Counter[str]]:
    """Return the `_annotation` of each row, and how many masks came in which other form."""

    def name(place: int) -> str:
        return f"{where}: annotations[{place}]"

    ids = _columns_of_ids(rows, {"image_id": images, "category_id": categories}, name)
    sizes = _sizes(images, ids["image_id"])
    areas, crowds, masks = (
        [row.get(key, default) for row in rows]
        for key, default in (("area", None), ("iscrowd", 0), ("segmentation", None))
    )
    sound = whole_codes(masks, sizes) | sound_polygons(masks, sizes)
    plain = _are_finite(areas) and {*map(type, crowds)} <= {int} and {*crowds} <= {0, 1}
    assumed: Counter[str] = Counter()
    annotations: list[JsonObject | None] = []
    for place, values in enumerate(zip(*ids.values(), areas, crowds, masks, strict=True)):
        found = dict(zip(ANNOTATION_KEYS, values, strict=True))
        if plain and place in sound:
            annotations.append(found)
            continue
        size, is_sound = sizes[place], place in sound
        annotations.append(_annotation(rows[place], found, size, is_sound, name(place), assumed))
    return annotations, assumed


def checked_results(results: Sequence[Any], truth: GroundTruth, where: object) -> list[JsonObject]:
    """Return results whose ids, scores and masks AP can take; other keys may hold anything.

    Raises:
        ValueError: a key is missing, an image or category unknown, or a mask does not cover its image; the
            message names `where` and the item.
    """

    def name(place: int) -> str:
        return f"{where}: item {place}"

    ids = _columns_of_ids(results, {"image_id": truth.images, "category_id": truth.categories}, name)
    sizes = _sizes(truth.images, ids["image_id"])
    whole = whole_codes([result.get("segmentation") for result in results], sizes)
    plain = _are_finite([result.get("score") for result in results])
    checked = list(results)
    for place in sorted(set(range(len(results))) - (whole if plain else set())):
        checked[place] = _result(results[place], sizes[place], place in whole, name(place))
    return checked


def _columns_of_ids(
    rows: Sequence[Any], tables: Mapping[str, Table], name: Callable[[int], str]
) -> dict[str, list[Any]]:
    """Return the ids of all rows by key, as the ground truth writes them; raise ValueError as `known_ids`.

    Ids in the types that JSON gives them take a tenth of the time of `known_ids`, which says what is wrong.
    """
    try:
        columns = {key: [row[key] for row in rows] for key in tables}
        types = {kind for column in columns.values() for kind in map(type, column)}
        if types <= {int, str} and all(set(columns[key]) <= table.keys() for key, table in tables.items()):
            return columns
    except (KeyError, TypeError):
        pass
    ids = [known_ids(row, tables, name(place)) for place, row in enumerate(rows)]
    return {key: [row[key] for row in ids] for key in tables}


def _sizes(images: Table, ids: Iterable[Any]) -> list[tuple[int, int]]:
    """Return height and width of the images with these ids."""
    sizes = {id: (int(image["height"]), int(image["width"])) for id, image in images.items()}
    return [sizes[id] for id in ids]


def _are_finite(values: Sequence[Any]) -> bool:
    """Return True if all values are finite numbers as JSON gives them."""
    try:
        return {*map(type, values)} <= {int, float} and bool(np.isfinite(np.array(values, np.float64)).all())
    except OverflowError:  # of a whole number
        return False


def _annotation(
    row: JsonObject, ids: JsonObject, size: tuple[int, int], sound: bool, where: str, assumed: Counter[str]
) -> JsonObject | None:
    """Return the annotation with the checked `ids` and a mask that the libraries take; None without a mask.

    `sound` says that the mask has been checked, and is a compressed RLE or polygons.
    """
    where += f" (id {brief(row.get('id'))}, image {brief(ids['image_id'])})"
    with errors_named(where):
        mask, form = (row["segmentation"], None) if sound else segmentation(row.get("segmentation"), size)
        if mask is None:
            return None
        if isinstance(mask, list) and not sound:
            check_points(mask, size)
        crowd = flag({"iscrowd": 0, **row}, "iscrowd")
    assumed.update([form] if form else [])
    area = get_value(row, "area", where, float)
    return {**ids, "area": area, "iscrowd": crowd, "segmentation": mask}


def _result(result: JsonObject, size: tuple[int, int], whole: bool, where: str) -> JsonObject:
    """Return a result of known ids, checked; `whole` says that its mask has been checked."""
    score = get_value(result, "score", where, float)
    mask = get_value(result, "segmentation", where)
    if not whole:
        if not isinstance(mask, dict) or not isinstance(mask.get("counts"), (str, bytes)):
            raise InputError(f"{where}: 'segmentation' is not a compressed RLE with 'size' and 'counts'")
        with errors_named(f"{where}, image {brief(result['image_id'])}"):
            mask = checked_rle(mask, size)
    return {**result, "score": score, "segmentation": mask}


def known_ids(row: Any, tables: Mapping[str, Table], where: str) -> JsonObject:
    """Return the ids of an annotation or result as the ground truth writes them.

    Args:
        row: an object with the keys of `tables`.
        tables: for each key, such as `image_id`, what it can refer to.
        where: the beginning of messages.

    Raises:
        ValueError: a key is missing, or an id is not in its table.
    """
    ids = {}
    for key, known in tables.items():
        value = get_value(row, key, where)
        if isinstance(value, bool) or not isinstance(value, (int, float, str)) or value not in known:
            raise InputError(f"{where}: {key} {brief(value)} is not in the ground truth")
        ids[key] = known[value]["id"]
    return ids


@contextmanager
def errors_named(where: str) -> Iterator[None]:
    """Put `where` in front of the message of a ValueError or KeyError about an entry of a JSON."""
    try:
        yield
    except KeyError as missing:
        raise InputError(f"{where}: no key {missing}") from None
    except (ValueError, OverflowError) as error:
        raise InputError(f"{where}: {error}") from error
