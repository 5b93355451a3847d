"""Values in COCO's JSONs, as annotation tools write them: which are read, and which are errors.

Training, evaluation and `check-dataset` share these rules. Errors name the key and the value; the caller adds
the file and the image.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from numbers import Integral, Real
from typing import Any

from PIL import ImageColor
from pycocotools import mask as rle

from mask2former.utils.coco_masks import check_points, checked_rle, is_polygon
from mask2former.utils.image_io import LIMIT_NAMES, pixel_limit
from mask2former.utils.label_maps import MAX_SEGMENT_ID
from mask2former.utils.messages import brief

Row = dict[str, Any]  # an entry of a JSON's lists: an image, an annotation, a segment or a category
Color = list[int]  # R, G, B in 0..255
NUMBERS = {int, float}
KNOWN_FORMS = "a list of polygons x, y, x, y, ... or an RLE with 'size' and 'counts'"


def wrong_value(key: str, value: Any, expected: str) -> ValueError:
    """Return the error of a value of another type than expected."""
    return ValueError(f"'{key}' is {brief(value)}, expected {expected}")


def whole_number(row: Row, key: str, least: float = -math.inf, most: float = math.inf) -> int:
    """Return a whole number from `least` to `most`; 3.0 is read as 3.

    Raises:
        KeyError: it is missing.
        ValueError: it is something else.
    """
    value = row[key]
    if not _is_whole(value) or not least <= value <= most:
        limits = "" if least == -math.inf else f" of at least {least}"
        limits = limits if most == math.inf else f" in [{least}, {most}]"
        raise wrong_value(key, value, f"a whole number{limits}")
    return int(value)


def _is_whole(value: Any) -> bool:
    return type(value) is int or (type(value) is float and value.is_integer()) or _is_numpy_integer(value)


def _is_numpy_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def sides(row: Row, keys: tuple[str, str] = ("height", "width")) -> tuple[int, int]:
    """Return height and width of an image; raise as `whole_number` does, also above the limit of pixels."""
    height, width = (whole_number(row, key, least=1) for key in keys)
    if height * width > pixel_limit() * 1e6:
        what = f"'{keys[0]}' and '{keys[1]}' are {brief(height, 20)} and {brief(width, 20)}"
        raise ValueError(f"{what}; the limit is {pixel_limit():g} megapixels {LIMIT_NAMES}")
    return height, width


def text(row: Row, key: str) -> str:
    """Return a text that is not empty; raise as `whole_number` does."""
    value = row[key]
    if not isinstance(value, str) or not value:
        raise wrong_value(key, value, "a text")
    return value


def class_name(row: Row, key: str = "name") -> str:
    """Return the name of a category; a whole number, as of digits, is read as text."""
    return str(row[key]) if type(row[key]) is int else text(row, key)


def image_key(row: Row, key: str) -> int | str:
    """Return the id of an image, a whole number or a text; raise as `whole_number` does."""
    return text(row, key) if isinstance(row[key], str) else whole_number(row, key)


def flag(row: Row, key: str) -> int:
    """Return 0 or 1; true and false are read as these, and null as 0."""
    value = row[key]
    if isinstance(value, str) or value not in (0, 1, None):
        raise wrong_value(key, value, "0 or 1")
    return int(value or 0)


def rows(row: Row, key: str) -> list[Row]:
    """Return a list of objects; raise as `whole_number` does."""
    found = row[key]
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise ValueError(f"'{key}' is not a list of objects: {brief(found)}")
    return found


def category(row: Row, *flags: str) -> Row:
    """Return a category with its `id`, `name` and `flags` (as `isthing`).

    Raises:
        ValueError: a key is missing, or a value is wrong.
    """
    try:
        checked = {"id": whole_number(row, "id"), "name": class_name(row)}
        return {**row, **checked, **{key: flag(row, key) for key in flags}}
    except KeyError as key:
        raise ValueError(f"no {key} in {brief(row)}") from None


def category_id(row: Row, categories: Collection[int]) -> int:
    """Return the id of a known category; raise as `whole_number` does."""
    value = whole_number(row, "category_id")
    if value not in categories:
        raise ValueError(f"category_id {brief(value)} is not among the categories {brief([*categories])}")
    return value


def segments(found: Iterable[Row], categories: Collection[int]) -> list[Row]:
    """Return the `segments_info` of a panoptic PNG: `id`, `category_id`, `iscrowd` and perhaps `area`.

    An area of null is left out.

    Raises:
        ValueError: a key is missing, a value is wrong, or an id is listed twice.
    """
    rows = [_segment(row, categories) for row in found]
    counts = Counter(row["id"] for row in rows)
    if twice := [number for number, count in counts.items() if count > 1]:
        raise ValueError(f"segments_info lists the id {brief(twice[0])} twice")
    return rows


def _segment(row: Row, categories: Collection[int]) -> Row:
    try:
        return {
            "id": whole_number(row, "id", least=1, most=MAX_SEGMENT_ID),
            "category_id": category_id(row, categories),
            "iscrowd": flag({"iscrowd": 0, **row}, "iscrowd"),
            **({} if row.get("area") is None else {"area": area(row["area"])}),
        }
    except KeyError as key:
        raise ValueError(f"no {key} in the segment {brief(row)}") from None
    except ValueError as error:
        raise ValueError(f"segment {brief(row['id'])}: {error}") from None


def area(value: Any) -> float:
    """Return the area of a segment or mask; raise ValueError if it is no number of at least 0."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= sys.float_info.max:
        raise wrong_value("area", value, "a number of pixels")
    return value


def require_areas(segments: Iterable[Row], shown: Callable[[], Collection[int]]) -> None:
    """Check the areas in the ground truth of PQ; `shown` returns the ids that have pixels.

    Raises:
        ValueError: a segment has no area, or 0 though it has pixels.
    """
    for segment in segments:
        pixels, number = segment.get("area"), segment["id"]
        if pixels is None or (pixels == 0 and number in shown()):
            what = "no 'area'" if pixels is None else "the 'area' 0 though it has pixels"
            raise ValueError(
                f"segment {number} has {what}; PQ needs it, unless TEST.RECOUNT_AREAS True (of `mask2former "
                "score panoptic`: --recount-areas) counts the pixels"
            )


def box(row: Row) -> list[float] | None:
    """Return `bbox`, x, y, width and height, or None if it is missing, null or empty."""
    value = row.get("bbox")
    if value is None or value == []:
        return None
    if not isinstance(value, list) or len(value) != 4 or not _are_numbers(value):
        raise wrong_value("bbox", value, "four numbers x, y, width, height")
    return value


def color(value: Any) -> Color | None:
    """Return a color given as text (`#e08585`, `red`), or as 3 or 4 numbers in 0..255 or [0, 1], or None."""
    if isinstance(value, str):
        try:
            return list(ImageColor.getrgb(value.strip())[:3])
        except ValueError:
            return None
    if not isinstance(value, list) or len(value) not in (3, 4) or not _are_numbers(value):
        return None
    is_fraction = max(value) <= 1 and any(isinstance(channel, float) for channel in value)
    channels = [255 * channel if is_fraction else channel for channel in value[:3]]
    return [round(channel) for channel in channels] if all(0 <= c <= 255 for c in channels) else None


def segmentation(value: Any, size: tuple[int, int]) -> tuple[Any, str | None]:
    """Return a mask as polygons or as an RLE, and what was assumed if it came in another form.

    The mask is None if there is none: a missing or empty value, or polygons of fewer than three points.

    Args:
        value: the annotation's `segmentation`.
        size: height and width of the image.

    Raises:
        ValueError: the form is unknown, an RLE is broken or of another size, or coordinates are missing.
    """
    if value is None or value == {}:
        return None, None
    if isinstance(value, dict):
        return _checked_rle(value, size), None
    if not isinstance(value, list):
        raise wrong_value("segmentation", value, KNOWN_FORMS)
    if value and all(isinstance(part, dict) and "counts" in part for part in value):
        codes = [_checked_rle(part, size) for part in value]
        if len(codes) == 1:
            return codes[0], "an RLE in a list, read as the RLE"
        merged = rle.merge([_compressed(code, size) for code in codes])
        return {**merged, "counts": merged["counts"].decode()}, "several RLEs, read as one mask, their union"
    polygons, assumed = _polygons(value)
    for points in polygons:
        if len(points) % 2:
            what = f"an odd number of coordinates, {len(points)}: {brief(points)}"
            raise ValueError(f"'segmentation' has a polygon with {what}")
    return [points for points in polygons if is_polygon(points)] or None, assumed


def frame_names(video: Row) -> list[str]:
    """Return the names of a video's frames in YouTube-VIS' JSON, its `file_names`.

    Raises:
        KeyError: it is missing.
        ValueError: it is no list of texts, is empty, or has another length than `length` says.
    """
    names = video["file_names"]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise wrong_value("file_names", names, "a list of texts")
    if "length" in video and whole_number(video, "length") != len(names):
        raise ValueError(f"'length' is {brief(video['length'])}, but 'file_names' has {len(names)} entries")
    return names


def per_frame(row: Row, key: str, frames: int) -> list[Any]:
    """Return a track's list of one value a frame; raise as `whole_number` does."""
    values = row[key]
    if not isinstance(values, list) or len(values) != frames:
        found = f"{len(values)} entries" if isinstance(values, list) else brief(values)
        raise ValueError(f"'{key}' has {found}, expected one for each of the video's {frames} frames")
    return values


def track_areas(row: Row, frames: int) -> list[float]:
    """Return the areas of a track in the frames that have one; raise as `per_frame` and `area` do."""
    return [area(pixels) for pixels in per_frame(row, "areas", frames) if pixels is not None]


def track_masks(row: Row, size: tuple[int, int], frames: int) -> tuple[list[Any], list[str]]:
    """Return the mask of each frame, and what was assumed, as `segmentation` does for an image.

    Args:
        row: a track, with `segmentations`.
        size: height and width of the video.
        frames: number of the video's frames.

    Raises:
        KeyError: `segmentations` is missing.
        ValueError: the number of entries is another one, or a mask is broken; the message names the frame.
    """
    masks, assumed = [], []
    for frame, value in enumerate(per_frame(row, "segmentations", frames)):
        try:
            mask, form = segmentation(value, size)
            if isinstance(mask, list):
                check_points(mask, size)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"frame {frame}: {error}") from error
        masks.append(mask)
        assumed += [form] if form else []
    return masks, assumed


def _polygons(value: list[Any]) -> tuple[list[list[float]], str | None]:
    """Return flat lists of coordinates, and what was assumed."""
    if all(isinstance(part, list) and _are_numbers(part) for part in value):
        if len(value) < 3 or any(len(part) != 2 for part in value):
            return value, None
        return [_joined(value)], "a list of points [x, y], read as one polygon"
    if _are_numbers(value):
        return [value], "a flat list of numbers, read as one polygon"
    if all(map(_is_point, value)):
        return [_joined(value)], "a list of points {x, y}, read as one polygon"
    if all(isinstance(part, list) and all(map(_is_point, part)) for part in value):
        return [_joined(part) for part in value], "polygons of points, read as polygons x, y, x, y, ..."
    if all(
        isinstance(part, list) and all(isinstance(p, list) and _are_numbers(p) for p in part)
        for part in value
    ):
        return [points for part in value for points in part], "polygons in a further list, read as polygons"
    raise wrong_value("segmentation", value, KNOWN_FORMS)


def _are_numbers(values: Iterable[Any]) -> bool:
    return set(map(type, values)) <= NUMBERS


def _is_point(value: Any) -> bool:
    if isinstance(value, dict):
        return value.keys() == {"x", "y"} and _are_numbers(value.values())
    return isinstance(value, list) and len(value) == 2 and _are_numbers(value)


def _joined(points: list[Any]) -> list[float]:
    pairs = ((point["x"], point["y"]) if isinstance(point, dict) else point for point in points)
    return [coordinate for pair in pairs for coordinate in pair]


def _checked_rle(code: Row, size: tuple[int, int]) -> Row:
    if "size" not in code or "counts" not in code:
        raise wrong_value("segmentation", code, KNOWN_FORMS)
    try:
        return checked_rle(code, size)
    except ValueError as error:
        raise ValueError(f"'segmentation' is a broken RLE: {error}") from error


def _compressed(code: Row, size: tuple[int, int]) -> Row:
    return rle.frPyObjects(code, *size) if isinstance(code["counts"], list) else code
