"""Images on which ranges of activations are measured before a model computes in int8."""

from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path

from torch import Tensor

from mask2former.data.mapper import TestMapper
from mask2former.modeling.mask_former import MaskFormer
from mask2former.options import CALIBRATION_IMAGES
from mask2former.utils.image_io import EXTENSIONS, read_image


def calibration_images(folder: str | PathLike[str], count: int = CALIBRATION_IMAGES) -> list[Path]:
    """Return up to `count` images of a folder, at even distances in the order of their names.

    Raises:
        ValueError: there is no such folder, or no image in it.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"--calibrate {folder}: no such folder of images")
    paths = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in EXTENSIONS)
    if not paths:
        raise ValueError(f"--calibrate {folder}: no image in it; type a folder of training images")
    return [paths[i * len(paths) // count] for i in range(count)] if len(paths) > count else paths


def calibration_batches(model: MaskFormer, mapper: TestMapper, paths: Sequence[Path]) -> Iterator[Tensor]:
    """Yield each image as the network gets it, (1, 3, H, W).

    Raises:
        ImageError: a file is not an image; the message names it.
    """
    for path in paths:
        yield model._images([mapper.inputs(read_image(path))])
