"""What is wrong with somebody's data, found before training: from the JSON, listed folders and file heads.

No image is decoded here, and of the heads a spread of `LOOKED_AT` is read. `tools/check_dataset.py` looks
at everything.

Shapes: `H, W` an image's sides in pixels.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mask2former.data.catalog import Record
from mask2former.data.custom.duplicates import shared_images
from mask2former.data.custom.label_classes import LOOKED_AT, spread
from mask2former.data.datasets.files import read_json
from mask2former.data.datasets.registration import Facts
from mask2former.data.errors import DatasetError, broken_record
from mask2former.data.ground_truth.polygons import FAR
from mask2former.utils.image_io import EXTENSIONS
from mask2former.utils.storage import PathLike, files_below, names_in, to_path

logger = logging.getLogger(__name__)

FILE_KEYS = ("file_name", "pan_seg_file_name", "sem_seg_file_name")
ORIENTATION, TURNED = 0x0112, range(5, 9)  # EXIF's tag, and its values for images that lie on their side
SLACK = 1.0  # pixels beyond the border that nobody is told of


def check_ids(path: PathLike, content: Facts) -> None:
    """Look for ids of a COCO JSON that occur twice: of images, of annotations, and of annotated images.

    Nothing here uses the ids of annotations, so that those are only told of.

    Raises:
        DatasetError: images share an id, or panoptic annotations an image.
    """
    images, annotations = content["images"], content["annotations"]
    panoptic = [annotation for annotation in annotations if "segments_info" in annotation]
    for where, rows, key in (("images", images, "id"), ("annotations", panoptic, "image_id")):
        if twice := _repeated(rows, key):
            raise DatasetError(f"{path}, {where}: the {key} {some(twice)} occurs more than once")
    for where, rows, key in (("images", images, "file_name"), ("annotations", annotations, "id")):
        if twice := _repeated(rows, key):
            logger.warning("%s, %s: the %s %s occurs more than once", path, where, key, some(twice))


def _repeated(rows: Iterable[Facts], key: str) -> list[Any]:
    counts = Counter(row[key] for row in rows if key in row)
    return [value for value, count in counts.items() if count > 1]


def check_areas(path: PathLike) -> None:
    """Raise where annotations of an instance JSON have no area: AP is measured by it.

    Raises:
        DatasetError: the first that has none.
    """
    for annotation in read_json(path, "annotations")["annotations"]:
        if "area" not in annotation:
            image = annotation.get("image_id")
            raise DatasetError(f"{path}, image id {image!r}: an annotation has no 'area', which AP goes by")


def check_files(records: Sequence[Record], image_root: PathLike) -> None:
    """Look for the files of all records, folder by folder; tell of images that no record names.

    Raises:
        DatasetError: files are missing, with where they may be meant to be.
    """
    contents: dict[Path, set[str]] = defaultdict(set)
    for key in FILE_KEYS:
        paths = [to_path(record[key]) for record in records if key in record]
        for folder in {path.parent for path in paths} - contents.keys():
            contents[folder] = names_in(folder)
        if missing := [path for path in paths if path.name not in contents[path.parent]]:
            raise DatasetError(
                f"{len(missing)} of {len(paths)} files that the annotations name do not exist: "
                f"{some(missing)}{_hint(missing[0], to_path(image_root))}"
            )
    named = {to_path(record["file_name"]) for record in records}
    if unnamed := sorted(str(path) for path in files_below(image_root, EXTENSIONS) if path not in named):
        logger.warning(
            "%s: %d images have no annotations, and are not used: %s",
            image_root,
            len(unnamed),
            some(unnamed),
        )


def _hint(missing: Path, image_root: Path) -> str:
    """Where a missing image lies, if that is easily found."""
    if not missing.is_relative_to(image_root):
        return ""
    for candidate in (image_root.parent / missing.relative_to(image_root), image_root / missing.name):
        if candidate.is_file():
            return f" ({candidate} does; 'file_name' is a path below the folder of images)"
    return ""


def check_sizes(records: Sequence[Record]) -> None:
    """Compare the sizes that a spread of files has with one another and with what the annotations say.

    Raises:
        DatasetError: they differ, or a file is no image.
    """
    for record in spread(records, LOOKED_AT):
        size = _upright_size(record, "file_name")
        expected = record.get("height", size[0]), record.get("width", size[1])
        if size != expected:
            raise broken_record(record, f"(height, width) is {size}, the annotations say {expected}")
        for key in FILE_KEYS[1:]:
            if key in record and (other := _upright_size(record, key)) != size:
                what = f"(height, width) is {other}, the image's is {size}"
                raise broken_record(record, what, record[key])


def _upright_size(record: Record, key: str) -> tuple[int, int]:
    """(H, W) as a viewer shows it; the pixels are not read."""
    try:
        with to_path(record[key]).open("rb") as file, Image.open(file) as image:
            turned = image.getexif().get(ORIENTATION) in TURNED
            return image.size if turned else image.size[::-1]
    except Exception as error:  # Pillow reports damage by many kinds of error
        raise broken_record(record, f"no readable image ({error})", record[key]) from error


def check_annotations(records: Sequence[Record], classes: Sequence[str], path: PathLike) -> None:
    """Look at all annotations of instances: is there one, are coordinates pixels, do they stay inside?

    Raises:
        DatasetError: there are no masks, or coordinates that cannot be meant.
    """
    present: Counter[int] = Counter()
    outside, largest = 0, 0.0
    for record in records:
        for annotation in record["annotations"]:
            present[annotation["category_id"]] += not annotation["iscrowd"]
            beyond, reach = _reach(record, annotation)
            outside += beyond
            largest = max(largest, reach)
    if not present.total():
        raise DatasetError(f"{path}: not one annotation has a mask; boxes alone cannot be trained on")
    if largest <= 1:
        raise DatasetError(f"{path}: all coordinates lie between 0 and 1; they must be pixels, not shares")
    if outside:
        logger.warning("%s: %d annotations reach beyond their image; they are cut off there", path, outside)
    empty = sum(not record["annotations"] for record in records)
    logger.info("%s: %d of %d images have no annotations", path, empty, len(records))
    tell_unused(path, classes, present)


def tell_unused(path: PathLike, classes: Sequence[str], present: Collection[int]) -> None:
    """Warn of classes that nothing is of: models with them learn that they do not exist."""
    if unused := [name for number, name in enumerate(classes) if number not in present]:
        logger.warning("%s: no annotation is of the classes %s", path, some(unused))


def _reach(record: Record, annotation: Facts) -> tuple[bool, float]:
    """Whether polygons or box leave the image, and the largest coordinate; infinite where it has an RLE."""
    size = np.array([record["width"], record["height"]])
    polygons = annotation["segmentation"] if isinstance(annotation["segmentation"], list) else []
    try:
        x, y, width, height = annotation.get("bbox") or (0, 0, 0, 0)
        box = np.array([x, y, x + width, y + height], np.float64)
        flat = [np.asarray(points, np.float64) for points in polygons]
        corners = np.concatenate([*flat, box]).reshape(-1, 2)
    except (TypeError, ValueError) as error:
        raise broken_record(record, f"a polygon or box is no list of numbers: {error}") from error
    if not (np.abs(corners) <= FAR * size.max()).all():
        raise broken_record(record, f"an annotation has a point more than {FAR} times the image's side away")
    beyond = (corners < -SLACK).any() or (corners > size + SLACK).any()
    return bool(beyond), max((float(points.max()) for points in flat), default=float("inf"))


def tell_overlap(images: Sequence[str], others: Sequence[str]) -> None:
    """Warn where images to test on are among those to train on, by path or by content."""
    if shared := shared_images(images, others):
        listed = some([f"{ours} = {theirs}" for ours, theirs in shared])
        logger.warning("%d images are both trained on and tested on: %s", len(shared), listed)


def check_same_classes(path: PathLike, classes: Sequence[str], trained: Sequence[str]) -> None:
    """Compare the classes of the data to test on with those `trained` on, in the order of their ids.

    Raises:
        DatasetError: what is in one of them alone, or that the order differs.
    """
    if list(classes) == list(trained):
        return
    more, fewer = sorted(set(classes) - set(trained)), sorted(set(trained) - set(classes))
    differences = [
        f"only here: {some(more)}" if more else "",
        f"only in the training data: {some(fewer)}" if fewer else "",
    ]
    what = "; ".join(filter(None, differences)) or "the order of their ids"
    raise DatasetError(f"{path}: its {len(classes)} classes are not those trained on ({what})")


def some(values: Sequence[Any]) -> str:
    """The first of them, for a message."""
    return ", ".join(map(str, values[:3])) + (", ..." if len(values) > 3 else "")
