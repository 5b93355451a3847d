"""Checks of instance ground truth and of results before AP is computed, which turn them into plain input.

Annotations follow the rules of training data (`utils.coco_values`): the same forms of masks are read, and
annotations without a mask are left out.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from mask2former.evaluation.common.json_files import JsonObject, get_value, index_by
from mask2former.utils.coco_masks import check_points, checked_rle, whole_codes
from mask2former.utils.coco_values import flag, segmentation, sides
from mask2former.utils.messages import InputError, brief

logger = logging.getLogger(__name__)

Table = Mapping[Any, JsonObject]  # by id

NO_MASK = "%s: AP leaves out %d annotations without an RLE or a polygon of 3 points"
RESULT_KEYS = ("image_id", "category_id", "score", "segmentation")
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
    assumed: Counter[str] = Counter()
    tables = {"image_id": images, "category_id": categories}
    ids = [known_ids(row, tables, f"{where}: annotations[{place}]") for place, row in enumerate(rows)]
    sizes = [_size(images[row["image_id"]]) for row in ids]
    whole = whole_codes([row.get("segmentation") for row in rows], sizes)
    annotations = [
        _annotation(row, ids[place], sizes[place], place in whole, f"{where}: annotations[{place}]", assumed)
        for place, row in enumerate(rows)
    ]
    masked = [annotation for annotation in annotations if annotation is not None]
    if dropped := len(rows) - len(masked):
        logger.warning(NO_MASK, where, dropped)
    for form, count in assumed.items():
        logger.warning("%s: the 'segmentation' of %d annotations is %s", where, count, form)
    if crowds_as_objects:
        masked = [{**annotation, "iscrowd": 0} for annotation in masked]
    return GroundTruth(images, categories, masked)


def checked_results(results: Sequence[Any], truth: GroundTruth, where: object) -> list[JsonObject]:
    """Return results with the ids of the ground truth and checked masks.

    Raises:
        ValueError: a key is missing, an image or category unknown, or a mask does not cover its image; the
            message names `where` and the item.
    """
    tables = {"image_id": truth.images, "category_id": truth.categories}
    plain = _are_plain(results, tables)
    checked = [
        {key: result[key] for key in RESULT_KEYS}
        if plain
        else _result(result, tables, f"{where}: item {place}")
        for place, result in enumerate(results)
    ]
    masks = [result["segmentation"] for result in checked]
    sizes = [_size(truth.images[result["image_id"]]) for result in checked]
    for place in sorted(set(range(len(masks))) - whole_codes(masks, sizes)):
        result = _result(results[place], tables, f"{where}: item {place}")
        with errors_named(f"{where}: item {place}, image {brief(result['image_id'])}"):
            checked[place]["segmentation"] = checked_rle(masks[place], sizes[place])
    return checked


def _are_plain(results: Sequence[Any], tables: Mapping[str, Table]) -> bool:
    """Return True if all results have ids of the tables and finite scores, in the types that JSON gives them.

    This takes a tenth of the time of `_result`, which says what is wrong.
    """
    try:
        columns = {key: [result[key] for result in results] for key in RESULT_KEYS}
        known = all(set(columns[key]) <= table.keys() for key, table in tables.items())
        scores = np.array(columns["score"])
    except (KeyError, TypeError, ValueError):
        return False
    types = {kind for key in tables for kind in map(type, columns[key])}
    return known and types <= {int, str} and scores.dtype == np.float64 and bool(np.isfinite(scores).all())


def _annotation(
    row: JsonObject, ids: JsonObject, size: tuple[int, int], whole: bool, where: str, assumed: Counter[str]
) -> JsonObject | None:
    """Return the annotation with a mask that the libraries take; None without a mask.

    `whole` says that the mask is a compressed RLE that has been checked.
    """
    where += f" (id {brief(row.get('id'))}, image {brief(ids['image_id'])})"
    with errors_named(where):
        mask, form = (row["segmentation"], None) if whole else segmentation(row.get("segmentation"), size)
        if mask is None:
            return None
        if isinstance(mask, list):
            check_points(mask, size)
        crowd = flag({"iscrowd": 0, **row}, "iscrowd")
    assumed.update([form] if form else [])
    area = get_value(row, "area", where, float)
    return {**ids, "area": area, "iscrowd": crowd, "segmentation": mask}


def _size(image: JsonObject) -> tuple[int, int]:
    return int(image["height"]), int(image["width"])


def _result(result: Any, tables: Mapping[str, Table], where: str) -> JsonObject:
    """Return the result with the ids of the ground truth; its mask is not checked yet."""
    ids = known_ids(result, tables, where)
    score = get_value(result, "score", where, float)
    mask = get_value(result, "segmentation", where)
    if not isinstance(mask, dict) or not isinstance(mask.get("counts"), (str, bytes)):
        raise InputError(f"{where}: 'segmentation' is not a compressed RLE with 'size' and 'counts'")
    return {**ids, "score": score, "segmentation": mask}


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
