"""Annotations made on the stored pixels of images that EXIF or TIFF tags rotate.

Images are read upright, as viewers show them. Some tools ignore the tag, as the sizes that they write show.
Their annotations are turned with the image here, and their label and panoptic PNGs marked to be turned. An
image rotated by 180 degrees, mirrored, or square has the same size either way: then the other images of the
dataset decide.

Shapes: `H, W` the upright image's sides in pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle

from mask2former.data.catalog import Record
from mask2former.data.custom.label_classes import LOOKED_AT, spread
from mask2former.utils import coco_values as values
from mask2former.utils.coco_values import Row
from mask2former.utils.image_io import TURNS, UPRIGHT, Header, ImageError, Turn, read_header
from mask2former.utils.label_maps import LABEL_ORIENTATION
from mask2former.utils.storage import PathLike, is_remote, to_path

logger = logging.getLogger(__name__)
THREADS = 8


def turned_upright(content: Row, files: Mapping[Any, Path], json_file: PathLike) -> Row:
    """Return the content of a COCO JSON with annotations of stored pixels turned; itself if there are none.

    Args:
        content: images, annotations and categories, whose values may be wrong; such rows stay as they are.
        files: of each image id.
        json_file: its name in the warning.
    """
    headers = rotated_headers(files)
    if not headers:
        return content
    sizes = {row["id"]: _given_size(row) for row in content["images"] if _id_of(row, "id") in headers}
    stored = _drawn_on_stored_pixels(headers, sizes)
    annotations, count = [], 0
    for row in content["annotations"]:
        image_id = _id_of(row, "image_id")
        turns = image_id in headers and _is_stored(row, headers[image_id], image_id in stored)
        annotations.append(_turned(row, headers[image_id]) if turns else row)
        count += turns
    if not count and not any(sizes[id_] != headers[id_].upright for id_ in stored):
        return content
    message = "%s: %d annotations of %d images are of the stored pixels, and are turned upright by EXIF's tag"
    logger.warning(message, json_file, count, len(stored))
    images = [
        _upright_row(row, headers[row["id"]]) if _id_of(row, "id") in stored else row
        for row in content["images"]
    ]
    return {**content, "images": images, "annotations": annotations}


def with_turned_labels(records: list[Record], labels: PathLike) -> list[Record]:
    """Return the records, marked where a label or panoptic PNG is of the stored pixels, in upright sizes.

    `labels`, a JSON or a folder, is named in the warning. A PNG with an orientation of its own is upright.
    """
    headers = rotated_headers({i: to_path(record["file_name"]) for i, record in enumerate(records)})
    if not headers:
        return records
    maps = {
        i: to_path(records[i].get("pan_seg_file_name") or records[i]["sem_seg_file_name"]) for i in headers
    }
    sizes = {i: header.stored for i, header in _headers(maps).items() if header.orientation == UPRIGHT}
    stored = _drawn_on_stored_pixels(headers, sizes)
    turned = [*records]
    for i, header in headers.items():
        if i in stored:
            turned[i] = {**turned[i], LABEL_ORIENTATION: header.orientation}
        if (records[i].get("height"), records[i].get("width")) == header.stored:
            turned[i] = _upright_row(turned[i], header)
    if changed := [i for i in headers if turned[i] != records[i]]:
        message = "%s: labels of %d images are of the stored pixels, and are turned upright by EXIF's tag"
        logger.warning(message, labels, len(changed))
    return turned


def rotated_headers(files: Mapping[Any, Path]) -> dict[Any, Header]:
    """Return the headers of the images that are not stored upright.

    Files that cannot be read are passed over. Of remote files a sample is read first.
    """
    remote = any(map(is_remote, files.values()))
    if remote and len(files) > LOOKED_AT and not rotated_headers(dict(spread([*files.items()], LOOKED_AT))):
        return {}
    return {id_: header for id_, header in _headers(files).items() if header.orientation != UPRIGHT}


def _headers(files: Mapping[Any, Path]) -> dict[Any, Header]:
    def read(file: Path) -> Header | None:
        with suppress(ImageError):
            return read_header(file)
        return None

    with ThreadPoolExecutor(THREADS) as pool:
        headers = zip(files, pool.map(read, files.values()), strict=True)
        return {id_: header for id_, header in headers if header}


def _drawn_on_stored_pixels(headers: Mapping[Any, Header], sizes: Mapping[Any, Any]) -> set[Any]:
    """Return the ids of the images whose annotations are of the stored pixels, by the sizes (H, W) given."""
    sideways = {id_ for id_ in sizes if headers[id_].stored != headers[id_].upright}
    stored = {id_ for id_ in sideways if sizes[id_] == headers[id_].stored}
    upright = {id_ for id_ in sideways if sizes[id_] == headers[id_].upright}
    unclear = {id_ for id_ in sizes.keys() - sideways if sizes[id_] == headers[id_].stored}
    return stored | unclear if stored and not upright else stored


def _id_of(row: Row, key: str) -> Any:
    """Return an id, or None if it is of a wrong type."""
    return row.get(key) if isinstance(row.get(key), int | float | str) else None


def _given_size(row: Row) -> tuple[int, int] | None:
    with suppress(KeyError, ValueError):
        return values.whole_number(row, "height"), values.whole_number(row, "width")
    return None


def _upright_row(row: Row, header: Header) -> Row:
    height, width = header.upright
    return {**row, "height": height, "width": width}


def _is_stored(row: Row, header: Header, image_is_stored: bool) -> bool:
    """Return True if an annotation is of the stored pixels, by the size of its RLE or of its image."""
    given = row.get("segmentation")
    code = given[0] if isinstance(given, list) and given and isinstance(given[0], dict) else given
    size = code.get("size") if isinstance(code, dict) else None
    if header.stored == header.upright or size not in ([*header.stored], [*header.upright]):
        return image_is_stored
    return size == [*header.stored]


def _turned(row: Row, header: Header) -> Row:
    """Return an annotation with its mask and box turned; values that are wrong stay as they are."""
    turn, size = TURNS[header.orientation], header.upright
    turned = dict(row)
    try:
        mask, _ = values.segmentation(row.get("segmentation"), header.stored)
        turned["segmentation"] = _turned_mask(mask, turn, header)
    except (ValueError, OverflowError):
        if isinstance(code := row["segmentation"], dict):  # so that the error will be of its counts
            turned["segmentation"] = {**code, "size": [*size]}
    with suppress(ValueError, OverflowError):
        if box := values.box(row):
            x, y, width, height = box
            corners = turn.points(np.array([[x, y], [x + width, y + height]], np.float64), size)
            low, high = corners.min(0), corners.max(0)
            turned["bbox"] = [*low.tolist(), *(high - low).tolist()]
    return turned


def _turned_mask(mask: Any, turn: Turn, header: Header) -> Any:
    if isinstance(mask, list):
        points = (np.array(polygon, np.float64).reshape(-1, 2) for polygon in mask)
        return [turn.points(xy, header.upright).ravel().tolist() for xy in points]
    if isinstance(mask, dict):
        code = rle.frPyObjects(mask, *header.stored) if isinstance(mask["counts"], list) else mask
        turned = rle.encode(np.asfortranarray(turn.mask(rle.decode(code))))
        return {"size": [*header.upright], "counts": turned["counts"].decode()}
    return mask


def image_files(rows: Iterable[Row], find: Callable[[Row], str], root: Path) -> dict[Any, Path]:
    """Return the file of each image by its id, without rows that are wrong."""
    files = {}
    for row in rows:
        with suppress(KeyError, ValueError):
            files[values.image_key(row, "id")] = root / find(row)
    return files
