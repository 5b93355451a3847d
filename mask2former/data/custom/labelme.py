"""A folder of labelme's JSONs, one for each image, as the content of a COCO JSON.

Shapes of one label and one `group_id` are one object. Left out are shapes without an area, and those labeled
`__ignore__` or `_background_`, as labelme's own converters do. `imageData` is not read.

https://github.com/wkentaro/labelme
"""

from __future__ import annotations

import base64
import io
import logging
import math
import posixpath
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle

from mask2former.data.custom.label_classes import LOOKED_AT, spread
from mask2former.data.datasets.files import load_json
from mask2former.data.errors import DatasetError, first_few
from mask2former.data.load_context import LoadContext
from mask2former.utils import coco_values as values
from mask2former.utils.coco_masks import check_points, is_polygon
from mask2former.utils.coco_values import Row
from mask2former.utils.image_io import ImageError, open_image, read_header
from mask2former.utils.messages import brief
from mask2former.utils.storage import files_below, is_file, to_path

logger = logging.getLogger(__name__)

NO_OBJECTS = ("__ignore__", "_background_")  # labels
CORNERS = 64  # of the polygon that stands for a circle
Size = tuple[int, int]


def is_labelme_folder(folder: Path) -> bool:
    """Return True if a JSON in a folder is labelme's; some of many are looked at."""
    files = sorted(files_below(folder, (".json",)))
    return any(_is_labelme(load_json(file)) for file in spread(files, LOOKED_AT))


def _is_labelme(content: Any) -> bool:
    return isinstance(content, dict) and "shapes" in content


def read_labelme(images: str, annotations: str, classes: dict[int, str], context: LoadContext) -> Row:
    """Return the images, annotations and categories of labelme's JSONs, as a COCO JSON has them.

    Args:
        images: the folder of images.
        annotations: the folder of JSONs.
        classes: names by id; if empty, all labels found, sorted.
        context: collects the errors of single files.

    Raises:
        DatasetError: a JSON is broken, or a label is none of the classes; the message names the file.
    """
    root, folder = to_path(images), to_path(annotations)
    files = sorted(files_below(folder, (".json",)))
    left_out: Counter[str] = Counter()

    def read(numbered: tuple[int, Path]) -> tuple[Path, Row, list[tuple[str, Any]]]:
        number, file = numbered
        content = load_json(file)
        if not _is_labelme(content):
            raise DatasetError(f"{file}: its format is not labelme's, as it has no 'shapes'")
        image = {"id": number, **_image(content, file, root, folder)}
        return file, image, _objects(content, file, (image["height"], image["width"]), left_out)

    found = context.convert_each(read, [*enumerate(files, start=1)])
    for what, count in sorted(left_out.items()):
        logger.warning("%s: left out %d shapes of the %s", annotations, count, what)
    labels = {label for _, _, objects in found for label, _ in objects}
    ids = {
        name: id_
        for id_, name in (classes or dict(enumerate(sorted(labels)))).items()
        if name not in NO_OBJECTS
    }
    _check_labels(found, ids, context)
    return {
        "images": [image for _, image, _ in found],
        "annotations": [
            {"image_id": image["id"], "category_id": ids[label], "segmentation": mask}
            for _, image, objects in found
            for label, mask in objects
            if label in ids
        ],
        "categories": [{"id": id_, "name": name} for name, id_ in ids.items()],
    }


def _check_labels(
    found: list[tuple[Path, Row, list[tuple[str, Any]]]], ids: dict[str, int], context: LoadContext
) -> None:
    for file, _, objects in found:
        if unknown := sorted({label for label, _ in objects} - ids.keys()):
            what = f"the label {first_few([brief(label) for label in unknown])} is not among the classes"
            context.report(DatasetError(f"{file}: {what} {first_few([*ids], 10)}"))


def _image(content: Row, file: Path, root: Path, folder: Path) -> Row:
    """Return the path of an image below the folder of images, and its size: the JSON's, else the image's."""
    try:
        name = _image_name(values.text(content, "imagePath"), file, root, folder)
        if content.get("imageHeight") is None or content.get("imageWidth") is None:
            height, width = read_header(root / name).upright
        else:
            height, width = values.sides(content, ("imageHeight", "imageWidth"))
    except KeyError as key:
        raise DatasetError(f"{file}: no {key}") from None
    except ValueError as error:
        raise DatasetError(f"{file}: {error}") from error
    return {"file_name": name, "height": height, "width": width}


def _image_name(written: str, file: Path, root: Path, folder: Path) -> str:
    """Return the path of an image, which labelme writes relative to the JSON, below the folder of images."""
    path = written.replace("\\", "/")
    joined = Path(posixpath.normpath(file.parent.absolute() / path))
    candidates = [joined.relative_to(root.absolute())] if joined.is_relative_to(root.absolute()) else []
    candidates.append(file.parent.relative_to(folder) / posixpath.basename(path))
    return next((name.as_posix() for name in candidates if is_file(root / name)), written)


def _objects(content: Row, file: Path, size: Size, left_out: Counter[str]) -> list[tuple[str, Any]]:
    """Return the label and the mask of each object: polygons or an RLE."""
    groups: dict[Any, list[Any]] = {}
    try:
        shapes = values.rows(content, "shapes")
    except ValueError as error:
        raise DatasetError(f"{file}: {error}") from error
    for place, shape in enumerate(shapes):
        try:
            label, kind = values.class_name(shape, "label"), shape.get("shape_type") or "polygon"
            if label in NO_OBJECTS or kind not in MASKS:
                left_out[f"label {label}" if label in NO_OBJECTS else f"type {brief(kind)}"] += 1
                continue
            group = shape.get("group_id")
            key = (label, brief(group)) if group is not None else (label, place, None)
            groups.setdefault(key, []).append(MASKS[kind](shape, size))
        except KeyError as key:
            raise DatasetError(f"{file}, shapes[{place}]: no {key}") from None
        except (ValueError, TypeError, OverflowError) as error:
            raise DatasetError(f"{file}, shapes[{place}]: {error}") from error
    try:
        return [(key[0], _joined(parts, size)) for key, parts in groups.items()]
    except ValueError as error:
        raise DatasetError(f"{file}: {error}") from error


def _joined(parts: list[Any], size: Size) -> Any:
    """Return one mask of polygons and RLEs."""
    polygons = [part for part in parts if isinstance(part, list)]
    if len(polygons) == len(parts):
        return polygons
    if polygons := [points for points in polygons if is_polygon(points)]:
        check_points(polygons, size)
    drawn = rle.frPyObjects(polygons, *size) if polygons else []
    merged = rle.merge([*drawn, *(part for part in parts if not isinstance(part, list))])
    return {"size": [*size], "counts": merged["counts"].decode()}


def _points(shape: Row, count: int | None = None) -> list[list[float]]:
    """Return the points x, y of a shape, of which `count` are needed.

    Raises:
        ValueError: they are something else.
    """
    points = shape["points"]
    valid = isinstance(points, list) and all(isinstance(point, list) and len(point) == 2 for point in points)
    if not valid or not all(type(value) in values.NUMBERS for point in points for value in point):
        raise ValueError(f"'points' is {brief(points)}, expected a list of points [x, y]")
    if not np.isfinite(np.array(points, np.float64)).all():
        raise ValueError("'points' has a point that is not finite")
    if count is not None and len(points) != count:
        kind = shape.get("shape_type")
        raise ValueError(f"'points' has {len(points)} points, expected {count} for the type {brief(kind)}")
    return points


def _polygon(shape: Row, size: Size) -> list[float]:
    return [value for point in _points(shape) for value in point]


def _rectangle(shape: Row, size: Size) -> list[float]:
    if len(_points(shape)) == 4:  # newer versions write all corners
        return _polygon(shape, size)
    (left, top), (right, bottom) = _points(shape, 2)
    return [left, top, right, top, right, bottom, left, bottom]


def _circle(shape: Row, size: Size) -> list[float]:
    """Return a polygon of the same center, through a point of the circle."""
    (x, y), (edge_x, edge_y) = _points(shape, 2)
    radius = math.hypot(edge_x - x, edge_y - y)
    angles = np.arange(CORNERS) * 2 * np.pi / CORNERS
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1).ravel().tolist()


def _mask(shape: Row, size: Size) -> Row:
    """Return an RLE of a PNG in base64, whose place its two corners give, both included."""
    (left, top), (right, bottom) = [[round(value) for value in point] for point in _points(shape, 2)]
    try:
        data = io.BytesIO(base64.b64decode(values.text(shape, "mask"), validate=True))
        with open_image(data, "'mask'") as image:
            patch = np.asarray(image.convert("L")) > 0
    except ImageError:
        raise
    except Exception as error:
        raise ValueError(f"'mask' is not a PNG in base64 ({error})") from error
    if patch.shape != (bottom - top + 1, right - left + 1):
        raise ValueError(f"'mask' is of (height, width) {patch.shape}, but its corners are {shape['points']}")
    canvas = np.zeros(size, np.uint8)
    height, width = max(0, min(bottom + 1, size[0])), max(0, min(right + 1, size[1]))
    y, x = max(0, top), max(0, left)
    part = patch[y - top : max(height - top, 0), x - left : max(width - left, 0)]
    canvas[y : y + part.shape[0], x : x + part.shape[1]] = part
    return rle.encode(np.asfortranarray(canvas))


MASKS: dict[Any, Callable[[Row, Size], Any]] = {
    "polygon": _polygon,
    "rectangle": _rectangle,
    "circle": _circle,
    "mask": _mask,
}
