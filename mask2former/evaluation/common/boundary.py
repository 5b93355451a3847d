"""The boundary of masks, as Boundary IoU (Cheng et al., CVPR 2021) defines it.

A pixel of a segment is on its boundary if, no further than `distance` columns and rows away, there is a pixel
that is not of the segment; what lies outside of the image is not.

Shapes: `H, W` the image's sides in pixels.
"""

import argparse
import math
from typing import Any

import numpy as np

from mask2former.utils.label_maps import Array

RATIO = 0.02  # of the image's diagonal
RATIOS = {"cityscapes_instance": 0.005, "cityscapes_panoptic_seg": 0.005}  # by evaluator type, if another


def ratio_of(metadata: Any) -> float:
    """The part of the diagonal that a boundary is wide on the data set."""
    return RATIOS.get(getattr(metadata, "evaluator_type", ""), RATIO)


def boundary_distance(height: int, width: int, ratio: float) -> int:
    """The width of boundaries in pixels, at least 1; a half is rounded to the even number, as published."""
    return max(1, round(ratio * math.sqrt(height**2 + width**2)))


def boundaries(labels: Array, distance: int) -> Array:
    """Which pixels (H, W) bool of a map of labels (H, W) are on the boundary of what has their label.

    A pixel is inside if the square of `2 * distance + 1` about it is in the image and of one label: no two
    neighbors in it differ. Squares are taken for all labels at once, as sums over rows, then columns.
    """
    on_boundary = np.ones(labels.shape, bool)
    side = 2 * distance + 1
    if min(labels.shape) < side:
        return on_boundary
    across = _any_of(_any_of(labels[:, 1:] != labels[:, :-1], side - 1, axis=1), side, axis=0)
    # Rows of one label each are of the same one if the middle column is
    down = _any_of((labels[1:] != labels[:-1])[:, distance:-distance], side - 1, axis=0)
    on_boundary[distance:-distance, distance:-distance] = across | down
    return on_boundary


def add_boundary_argument(parser: argparse.ArgumentParser) -> None:
    """The flag `--boundary [RATIO]` of the commands."""
    parser.add_argument(
        "--boundary",
        nargs="?",
        type=float,
        const=RATIO,
        metavar="RATIO",
        help=f"boundary metrics besides; of what part of the diagonal, {RATIO} or (Cityscapes) 0.005",
    )


def check_ratio(ratio: float) -> float:
    """The ratio; a ValueError if it is none."""
    if not 0 < ratio < 1:
        raise ValueError(f"the boundary ratio is {ratio}, expected a part of the diagonal in (0, 1)")
    return ratio


def _any_of(flags: Array, count: int, axis: int) -> Array:
    """Whether any of `count` flags in a row is set, for each place where such a row along `axis` begins."""
    sums = np.cumsum(np.insert(flags, 0, False, axis), axis, dtype=np.int32)
    end = sums.shape[axis]
    return sums.take(range(count, end), axis) > sums.take(range(end - count), axis)
