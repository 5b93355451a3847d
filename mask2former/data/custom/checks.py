"""Checks of a custom dataset before training, which read the JSON, file lists and some image headers.

No image is decoded here, and headers and panoptic PNGs are read of `LOOKED_AT` images at most. The command
`mask2former check-dataset` decodes everything.

Shapes: `H, W` an image's sides in pixels.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from mask2former.data.catalog import Record
from mask2former.data.custom.duplicates import shared_images
from mask2former.data.custom.label_classes import LOOKED_AT, spread
from mask2former.data.datasets.coco import Row
from mask2former.data.datasets.files import load_json
from mask2former.data.errors import (
    DatasetError,
    broken_record,
    examples,
    first_few,
    wrong_map_size,
    wrong_size,
)
from mask2former.data.ground_truth.readers import panoptic_segments
from mask2former.data.load_context import LoadContext
from mask2former.utils.coco_masks import FAR
from mask2former.utils.image_io import EXTENSIONS, SIDEWAYS, ImageError, read_header
from mask2former.utils.label_maps import LABEL_ORIENTATION
from mask2former.utils.messages import reason
from mask2former.utils.storage import PathLike, contents_of, files_below, is_file, names_in, to_path

logger = logging.getLogger(__name__)

FILE_KEYS = ("file_name", "pan_seg_file_name", "sem_seg_file_name")
CROWDS = (
    "crowd regions ('iscrowd' 1) are not trained on; if they are single objects, as masks of CVAT's brush "
    "are, give --crowds-as-objects"
)
SLACK = 1.0  # pixels beyond the border that no warning mentions


def check_areas(path: PathLike, context: LoadContext) -> None:
    """Check that the annotations with a mask in an instance JSON have an area, which AP needs.

    Raises:
        DatasetError: an annotation has no area.
    """
    for annotation in load_json(path, "annotations", context=context)["annotations"]:
        if annotation.get("segmentation") and "area" not in annotation:
            where = f"{path}, image id {annotation.get('image_id')!r}"
            raise DatasetError(f"{where}: an annotation has no 'area', which AP needs")


def check_files(records: Sequence[Record], image_root: PathLike) -> None:
    """Check that the files of all records exist, and warn of images that no record names.

    Raises:
        DatasetError: files are missing; the message says where they may lie.
    """
    contents: dict[Path, set[str]] = defaultdict(set)
    for key in FILE_KEYS:
        paths = [to_path(record[key]) for record in records if key in record]
        for folder in {path.parent for path in paths} - contents.keys():
            contents[folder] = names_in(folder)
        if missing := [path for path in paths if path.name not in contents[path.parent]]:
            what = f"{len(missing)} of {len(paths)} files that the annotations name do not exist"
            raise DatasetError(f"{what}: {examples(missing)}{_hint(missing[0], to_path(image_root))}")
    named = {to_path(record[key]) for record in records for key in FILE_KEYS if key in record}
    if unnamed := sorted(str(path) for path in files_below(image_root, EXTENSIONS) if path not in named):
        message = "%s: %d images have no annotations and are not used: %s"
        logger.warning(message, image_root, len(unnamed), examples(unnamed))


def require_images(records: Sequence[Record], image_root: PathLike) -> None:
    """Check that one of the images that the records name exists, or any image at all.

    Raises:
        DatasetError: there are only other files.
    """
    exist = any(is_file(to_path(record["file_name"])) for record in records)
    if records and not exist and not any(files_below(image_root, EXTENSIONS)):
        raise DatasetError(f"{image_root}: there are no images; {contents_of(image_root)}")


def _hint(missing: Path, image_root: Path) -> str:
    """Return where a missing image lies, if beside the folder, or what the folder holds but images."""
    if not missing.is_relative_to(image_root):
        return ""
    candidate = image_root.parent / missing.relative_to(image_root)
    if is_file(candidate):
        return f" ({candidate} does; 'file_name' is a path below the folder of images)"
    if not any(files_below(image_root, EXTENSIONS)):
        return f" ({image_root}: there are no images; {contents_of(image_root)})"
    return ""


def check_sizes(records: Sequence[Record]) -> None:
    """Compare the sizes of at most `LOOKED_AT` images with those of their PNGs and annotations.

    Raises:
        DatasetError: they differ, or a file is not a readable image.
    """
    for record in spread(records, LOOKED_AT):
        size = _upright_size(record, "file_name")
        expected = record.get("height", size[0]), record.get("width", size[1])
        if size != expected:
            raise wrong_size(record, size, expected)
        for key in FILE_KEYS[1:]:
            if key not in record:
                continue
            other = _upright_size(record, key)
            other = other[::-1] if record.get(LABEL_ORIENTATION) in SIDEWAYS else other
            if other != size:
                raise wrong_map_size(record, record[key], other, size)


def check_panoptic(records: Sequence[Record], num_classes: int) -> None:
    """Compare the ids in at most `LOOKED_AT` PNGs with those listed; raise as `panoptic_segments`."""

    def check(record: Record) -> None:
        panoptic_segments(record, num_classes, (record["height"], record["width"]))

    with ThreadPoolExecutor() as pool:
        deque(pool.map(check, spread(records, LOOKED_AT)), maxlen=0)


def _upright_size(record: Record, key: str) -> tuple[int, int]:
    """Return (H, W) as a viewer shows the image, from its header."""
    try:
        return read_header(record[key]).upright
    except ImageError as error:
        raise broken_record(record, reason(error, record[key]), record[key]) from error


def check_annotations(records: Sequence[Record], classes: Sequence[str], path: PathLike) -> None:
    """Check all instance annotations: masks exist, and coordinates are pixels. Log what else is unusual.

    Raises:
        DatasetError: there are no masks, or coordinates are not plausible.
    """
    present: Counter[int] = Counter()
    num_crowds = 0
    num_outside, largest = 0, 0.0
    for record in records:
        size = np.array([record["width"], record["height"]])
        for annotation in record["annotations"]:
            present[annotation["category_id"]] += not annotation["iscrowd"]
            num_crowds += annotation["iscrowd"]
            polygons, box = _points(record, annotation)
            corners = np.concatenate([*polygons, box])
            if not (np.abs(corners) <= FAR * size.max()).all():
                what = f"an annotation has a point more than {FAR} times the image's side away"
                raise broken_record(record, what)
            num_outside += bool((corners < -SLACK).any() or (corners > size + SLACK).any())
            largest = max([largest, *(float(points.max()) for points in polygons)]) if polygons else np.inf
    if num_crowds and not present.total():
        raise DatasetError(f"{path}: all {num_crowds} masks are crowd regions; {CROWDS}")
    if not present.total():
        raise DatasetError(f"{path}: no annotation has a mask; boxes alone cannot be trained on")
    if num_crowds:
        total = num_crowds + present.total()
        logger.warning("%s: %d of %d masks are crowd regions", path, num_crowds, total)
        logger.warning(CROWDS)
    if largest <= 1:
        what = "all coordinates lie between 0 and 1; they must be pixels, not fractions of the image"
        raise DatasetError(f"{path}: {what}")
    if num_outside:
        logger.warning("%s: %d annotations reach beyond their image and are clipped", path, num_outside)
    empty = sum(not record["annotations"] for record in records)
    logger.info("%s: %d of %d images have no annotations", path, empty, len(records))
    warn_of_unused_classes(path, classes, present)


def _points(record: Record, annotation: Row) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the polygons (none for an RLE) and the two corners of the box, each (n, 2) xy."""
    polygons = annotation["segmentation"] if isinstance(annotation["segmentation"], list) else []
    try:
        x, y, width, height = annotation.get("bbox") or (0, 0, 0, 0)
        box = np.array([[x, y], [x + width, y + height]], np.float64)
        return [np.fromiter(points, np.float64).reshape(-1, 2) for points in polygons], box
    except (TypeError, ValueError, OverflowError) as error:
        raise broken_record(record, f"a polygon or box is not a list of numbers: {error}") from error


def warn_of_unused_classes(path: PathLike, classes: Sequence[str], present: Collection[int]) -> None:
    """Warn of classes without annotations: a model learns that they do not exist."""
    if unused := [name for number, name in enumerate(classes) if number not in present]:
        logger.warning("%s: no annotation is of the classes %s", path, first_few(unused))


def warn_of_overlap(train_images: Sequence[str], test_images: Sequence[str]) -> None:
    """Warn if images to test on are among those to train on, by path or by content."""
    if shared := shared_images(train_images, test_images):
        pairs = examples([f"{train} = {test}" for train, test in shared])
        logger.warning("%d images are both trained on and tested on: %s", len(shared), pairs)


def check_same_classes(path: PathLike, classes: Sequence[str], train_classes: Sequence[str]) -> None:
    """Compare the classes to test on with the classes to train on, in the order of their ids.

    Raises:
        DatasetError: they differ; the message says how.
    """
    if list(classes) == list(train_classes):
        return
    sides = (("here", classes, train_classes), ("in the training data", train_classes, classes))
    only = {where: sorted(set(names) - set(others)) for where, names, others in sides}
    differences = [f"only {where}: {first_few(names)}" for where, names in only.items() if names]
    what = "; ".join(differences) or "the order of their ids"
    raise DatasetError(f"{path}: its {len(classes)} classes are not those trained on ({what})")
