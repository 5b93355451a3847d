"""ADE20K, the 150 classes: semantic labels from 0, instances as COCO's JSON, and panoptic annotations.

Makes below ADEChallengeData2016/
  semantic: annotations_detectron2/{training,validation}/*.png, 0..149, 255 where nothing is labeled
  instance: ade20k_instance_{train,val}.json, the 100 classes of things
  panoptic: ade20k_panoptic_{train,val}/*.png and .json: stuff as labeled, with the instances on top

Instance and panoptic annotations need annotations_instance/, which the authors publish as a separate archive.
As in the published annotations, the area of stuff is measured before instances are pasted over it.
"""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pycocotools import mask as rle

from mask2former.data import preparation
from mask2former.data.datasets.coco import Row
from mask2former.data.datasets.files import table
from mask2former.data.errors import DatasetError
from mask2former.utils.label_maps import (
    IGNORE_LABEL,
    VOID,
    Array,
    read_label_map,
    read_segment_ids,
    write_label_map,
    write_segment_ids,
)

logger = logging.getLogger(__name__)
SPLITS = {"train": "training", "val": "validation"}
CLASSES = 150


class AnnotationFiles(NamedTuple):
    """The two files that annotate an image: labels 0..150, and instances as RGB."""

    labels: Path
    instances: Path


class ImageRows(NamedTuple):
    """The rows of one image in a JSON."""

    image: Row
    annotations: list[Row]


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and prepare."""
    parser = preparation.argument_parser(__doc__)
    parser.add_argument(
        "--only", choices=KINDS, nargs="+", help="what to make (default: all that is possible)"
    )
    preparation.run(parser, prepare, arguments)


def prepare(arguments: Namespace) -> None:
    """Prepare the chosen kinds of all splits that exist."""
    folder = arguments.root / "ADEChallengeData2016"
    splits = preparation.present({split: folder / "annotations" / long for split, long in SPLITS.items()})
    kinds = arguments.only or KINDS
    if not arguments.only and not (folder / "annotations_instance").exists():
        logger.info("%s does not exist: only semantic labels are made", folder / "annotations_instance")
        kinds = ["semantic"]
    for split in splits:
        for kind in kinds:
            KINDS[kind](folder, split, arguments.workers)


def make_semantic(folder: Path, split: str, workers: int) -> None:
    """Make `annotations_detectron2`."""
    labels = preparation.files_in(folder / "annotations" / SPLITS[split], "*.png")
    target = folder / "annotations_detectron2" / SPLITS[split]
    preparation.make_folder(target, {path.name: path for path in labels}, write_semantic, workers=workers)


def make_instances(folder: Path, split: str, workers: int) -> None:
    """Make `ade20k_instance_*.json`."""
    target = folder / f"ade20k_instance_{split}.json"
    if target.exists():
        logger.info("%s exists already", target)
        return
    files = _annotation_files(folder, split)
    found = preparation.parallel(instances_of, files, workers=workers, what=str(target))
    rows = [row for image in found for row in image.annotations]
    content = {
        "images": [image.image for image in found],
        "categories": [
            {"id": row["id"], "name": row["instance100_name"]}
            for row in table("ade20k_150")
            if row["isthing"]
        ],
        "annotations": [{"id": number, **row} for number, row in enumerate(rows, start=1)],
    }
    preparation.write_json(target, content)


def make_panoptic(folder: Path, split: str, workers: int) -> None:
    """Make `ade20k_panoptic_*`, JSON and PNGs."""
    target = folder / f"ade20k_panoptic_{split}"
    jobs = {files.labels.name: files for files in _annotation_files(folder, split)}
    preparation.make_annotations(
        target.with_suffix(".json"), target, jobs, write_panoptic, panoptic_content, workers=workers
    )


KINDS: dict[str, Callable[[Path, str, int], None]] = {
    "semantic": make_semantic,
    "instance": make_instances,
    "panoptic": make_panoptic,
}


def write_semantic(labels: Path, path: Path) -> None:
    """Write a PNG of labels from 0."""
    contiguous = _contiguous(labels)
    write_label_map(path, np.where(contiguous < 0, IGNORE_LABEL, contiguous).astype(np.uint8))


def instances_of(files: AnnotationFiles) -> ImageRows:
    """Return the rows of one image's instances."""
    labels, instances = _read(files)
    stem, size, annotations = files.instances.stem, labels.shape, []
    for category, mask in instances:
        code = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
        shape = {"size": list(size), "counts": code["counts"].decode()}
        row = {"image_id": stem, "iscrowd": 0, "category_id": category, "segmentation": shape}
        annotations.append({**row, **preparation.extent(mask)})
    return ImageRows(_image(stem, size), annotations)


def write_panoptic(files: AnnotationFiles, path: Path) -> ImageRows:
    """Write a panoptic PNG; return its rows: stuff in the order of its classes, then the instances."""
    labels, instances = _read(files)
    stuff = [row["id"] for row in table("ade20k_150") if not row["isthing"]]
    regions = [(category, labels == category) for category in np.intersect1d(labels, stuff).tolist()]
    ids = np.full(labels.shape, VOID, np.int64)
    rows: list[Row] = []
    for category, mask in [*regions, *instances]:
        segment_id = _unused_id(category, {row["id"] for row in rows})
        ids[mask] = segment_id
        rows.append({"id": segment_id, "category_id": category, **preparation.extent(mask), "iscrowd": 0})
    write_segment_ids(path, ids)
    return ImageRows(_image(files.labels.stem, labels.shape), rows)


def panoptic_content(found: list[ImageRows]) -> Row:
    """Return the content of the panoptic JSON."""
    categories = [
        {key: row[key] for key in ("name", "id", "isthing", "color")} for row in table("ade20k_150")
    ]
    annotations = [
        {"image_id": image["id"], "file_name": f"{image['id']}.png", "segments_info": rows}
        for image, rows in found
    ]
    return {"images": [image for image, _ in found], "annotations": annotations, "categories": categories}


def _annotation_files(folder: Path, split: str) -> list[AnnotationFiles]:
    """Return the two files of each image.

    Raises:
        DatasetError: one of them is missing.
    """
    labels = preparation.files_in(folder / "annotations" / SPLITS[split], "*.png")
    instances = preparation.files_in(folder / "annotations_instance" / SPLITS[split], "*.png")
    if unpaired := {path.name for path in labels} ^ {path.name for path in instances}:
        raise DatasetError(
            f"{labels[0].parent} and {instances[0].parent}: only one of them has {min(unpaired)}"
        )
    return [AnnotationFiles(*pair) for pair in zip(labels, instances, strict=True)]


def _read(files: AnnotationFiles) -> tuple[Array, list[tuple[int, Array]]]:
    """Return labels (H, W), and class and mask (H, W) of each instance, in the order of their numbers."""
    labels, values = _contiguous(files.labels), read_segment_ids(files.instances) & 0xFFFF  # R and G; B is 0
    if values.shape != labels.shape:
        raise DatasetError(
            f"{files.instances}: {values.shape} (height, width), but the labels: {labels.shape}"
        )
    classes = {row["instance100_id"]: row["id"] for row in table("ade20k_150") if row["isthing"]}
    instances = []
    for value in sorted(np.unique(values).tolist(), key=lambda value: divmod(value, 256)):
        number, red = divmod(value, 256)
        if number == 0:
            continue
        if red not in classes:
            raise DatasetError(
                f"{files.instances}: instance {number} has the class {red}, which is not in 1..100"
            )
        instances.append((classes[red], values == value))
    return labels, instances


def _contiguous(path: Path) -> Array:
    """Return labels from 0, and -1 where nothing is labeled: (H, W) int32."""
    labels = read_label_map(path).astype(np.int32)
    if labels.max() > CLASSES:
        raise DatasetError(f"{path}: label {labels.max()}, but there are only 0..{CLASSES}")
    return labels - 1


def _unused_id(category: int, used: set[int]) -> int:
    """Return the color of the class as an id, or the next unused id."""
    red, green, blue = table("ade20k_150")[category]["color"]
    first = red + 256 * green + 65536 * blue
    return next(segment_id for segment_id in count(first) if segment_id not in {VOID, *used})


def _image(stem: str, size: tuple[int, ...]) -> Row:
    return {"id": stem, "file_name": f"{stem}.jpg", "width": size[1], "height": size[0]}


if __name__ == "__main__":
    main()
