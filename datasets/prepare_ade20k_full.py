"""ADE20K, the full set: semantic labels of the 847 classes.

Makes below ADE20K_2021_17_01/
  images_detectron2/{training,validation}/*.jpg
  annotations_detectron2/{training,validation}/*.tif, 16 bits: 0..846, 65535 for all other classes

As in the published preparation, images and labels are reduced to a shorter side of 512 pixels.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mask2former.data import preparation
from mask2former.data.datasets.files import table
from mask2former.data.errors import DatasetError
from mask2former.utils.image_io import write_image
from mask2former.utils.label_maps import Array, read_segment_ids, write_label_map

SPLITS = ("training", "validation")
SHORTER_SIDE = 512
OTHER = 65535
INDICES = 26 * 256  # R // 10 * 256 + G is below it


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and prepare."""
    preparation.run(preparation.argument_parser(__doc__), prepare, arguments)


def prepare(arguments: Namespace) -> None:
    """Prepare the splits that exist."""
    folder = arguments.root / "ADE20K_2021_17_01"
    for split in preparation.present({split: folder / "images" / "ADE" / split for split in SPLITS}):
        files = preparation.files_in(folder / "images" / "ADE" / split, "**/*_seg.png")
        names = [path.name.removesuffix("_seg.png") for path in files]
        for kind, suffix, make in (
            ("annotations", ".tif", write_labels),
            ("images", ".jpg", write_resized_image),
        ):
            jobs = {name + suffix: path for name, path in zip(names, files, strict=True)}
            target = folder / f"{kind}_detectron2" / split
            preparation.make_folder(target, jobs, make, workers=arguments.workers)


def write_labels(path: Path, target: Path) -> None:
    """Write a TIFF of labels from a `*_seg.png`."""
    ids = read_segment_ids(path)
    indices = (ids & 0xFF) // 10 * 256 + (ids >> 8 & 0xFF)
    labels = _train_ids()[indices]
    reduced = cv2.resize(labels, _reduced_size(labels.shape), interpolation=cv2.INTER_NEAREST)
    write_label_map(target, reduced)


def write_resized_image(path: Path, target: Path) -> None:
    """Write the image of a `*_seg.png` as stored: labels do not follow the EXIF orientation."""
    source = path.with_name(path.name.replace("_seg.png", ".jpg"))
    try:
        with Image.open(source) as stored:
            image = np.asarray(stored.convert("RGB"))
    except Exception as error:  # Pillow reports damage by many kinds of error
        raise DatasetError(f"{source}: not a readable image ({error})") from error
    size = read_segment_ids(path).shape
    if image.shape[:2] != size:
        raise DatasetError(f"{source}: {image.shape[:2]} (height, width), but {path}: {size}")
    write_image(target, cv2.resize(image, _reduced_size(size), interpolation=cv2.INTER_LINEAR))


@cache
def _train_ids() -> Array:
    """Return the label of each class index of the full ADE20K, uint16."""
    labels = np.full(INDICES, OTHER, np.uint16)
    for row in table("ade20k_full_847"):
        labels[row["full_ade20k_index"]] = row["trainId"]
    return labels


def _reduced_size(size: tuple[int, ...]) -> tuple[int, int]:
    """Return (width, height) for an image of (height, width), with a shorter side of at most 512."""
    height, width = size
    shorter = min(size)
    if shorter <= SHORTER_SIDE:
        return width, height
    return round(width / shorter * SHORTER_SIDE), round(height / shorter * SHORTER_SIDE)


if __name__ == "__main__":
    main()
