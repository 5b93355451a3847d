"""COCO-Stuff 10k, version 1.1: images by split, and semantic labels of the 171 classes.

Makes below coco/coco_stuff_10k/
  images_detectron2/{train,test}/*.jpg, copies
  annotations_detectron2/{train,test}/*.png: 0..170, 255 where nothing is labeled

from images/, annotations/*.mat and imageLists/. Classes are the labels 1..182 without eleven that never
occur.
"""

from __future__ import annotations

import shutil
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from mask2former.data import preparation
from mask2former.data.datasets.coco_stuff import CONTIGUOUS_IDS
from mask2former.data.errors import DatasetError
from mask2former.utils.label_maps import IGNORE_LABEL, relabel, write_label_map

SPLITS = ("train", "test")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and prepare."""
    preparation.run(preparation.argument_parser(__doc__), prepare, arguments)


def prepare(arguments: Namespace) -> None:
    """Prepare both splits."""
    folder = arguments.root / "coco" / "coco_stuff_10k"
    for split in preparation.present({split: folder / "imageLists" / f"{split}.txt" for split in SPLITS}):
        names = (folder / "imageLists" / f"{split}.txt").read_text().split()
        labels = {f"{name}.png": folder / "annotations" / f"{name}.mat" for name in names}
        images = {f"{name}.jpg": folder / "images" / f"{name}.jpg" for name in names}
        for kind, jobs, make in (
            ("annotations_detectron2", labels, write_labels),
            ("images_detectron2", images, copy_image),
        ):
            preparation.make_folder(folder / kind / split, jobs, make, workers=arguments.workers)


def write_labels(path: Path, target: Path) -> None:
    """Write a PNG of labels from a MATLAB file."""
    try:
        with path.open("rb") as file:
            content = loadmat(file, variable_names=["S"])
        labels = relabel(content["S"], {0: IGNORE_LABEL, **CONTIGUOUS_IDS})
    except NotImplementedError:
        raise DatasetError(
            f"{path}: a file of MATLAB 7.3, as in version 1.0 of COCO-Stuff 10k; version 1.1 is needed"
        ) from None
    except Exception as error:  # scipy reports damage by many kinds of error
        raise DatasetError(f"{path}: no labels can be read ({error})") from error
    write_label_map(target, labels.astype(np.uint8))


def copy_image(path: Path, target: Path) -> None:
    """Copy an image unchanged."""
    shutil.copyfile(path, target)


if __name__ == "__main__":
    main()
