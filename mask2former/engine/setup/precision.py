"""The precision in which a trained model predicts, by name, and the images on which int8 is calibrated."""

import logging
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from tqdm import tqdm

from mask2former.config import with_values
from mask2former.data.mapper import TestMapper, build_test_mapper
from mask2former.modeling.int8 import quantize_, require_int8
from mask2former.modeling.mask_former import MaskFormer
from mask2former.modeling.precision import set_precision
from mask2former.options import CALIBRATION_IMAGES
from mask2former.utils.comm import is_main_process
from mask2former.utils.image_io import EXTENSIONS, read_image
from mask2former.utils.messages import plural

logger = logging.getLogger(__name__)


def images_for_precision(precision: str, calibrate: str | PathLike[str] | None) -> list[Path]:
    """Return the images on which int8 is calibrated, of the folder `calibrate`; none for other precisions.

    Raises:
        ValueError: int8 without a folder, another precision with one, or a folder without images.
    """
    if (precision == "int8") != (calibrate is not None):
        raise ValueError(
            f"precision is '{precision}' and calibrate {calibrate}: int8, and nothing else, needs "
            "--calibrate DIR, in Python calibrate=DIR, a folder of images like those to predict"
        )
    return [] if calibrate is None else calibration_images(calibrate)


def apply_precision(cfg: CfgNode, model: nn.Module, precision: str, images: Sequence[Path]) -> None:
    """Let a trained model predict in a precision, in place; "int8" is calibrated on `images`.

    Raises:
        ValueError: the precision is unknown, or not to be had with this model or on this machine.
        ImageError: a file is not an image; the message names it.
    """
    if precision == "fp32":
        return
    if not isinstance(model, MaskFormer):
        raise ValueError(
            f"precision '{precision}' is for models of this project; MODEL.META_ARCHITECTURE is "
            f"{cfg.MODEL.META_ARCHITECTURE}"
        )
    set_precision(model, _to_int8(cfg, model, images) if images else precision)


def _to_int8(cfg: CfgNode, model: MaskFormer, images: Sequence[Path]) -> str:
    """Quantize the model, and return the precision in which its other layers are fastest."""
    require_int8(model)
    one_view = {"TEST.AUG.ENABLED": False, "TEST.TILE.SIZE": 0}
    mapper = build_test_mapper(with_values(cfg, one_view, "calibration"))
    batches = calibration_batches(model, mapper, images)
    progress = tqdm(batches, "calibration", len(images), disable=not is_main_process())
    count = quantize_(model, progress)
    logger.info("int8 in %s, calibrated with %s", plural(count, "layer"), plural(len(images), "image"))
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


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
