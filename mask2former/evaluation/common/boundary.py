"""Boundaries of masks, as Boundary IoU (Cheng et al., CVPR 2021) defines it.

A pixel of a segment is on its boundary if a pixel within `distance` columns and rows does not belong to the
segment. Pixels outside of the image belong to no segment.

Shapes: `H, W` the image's sides in pixels.
"""

import math
from typing import Any

import numpy as np

from mask2former.options import BOUNDARY_RATIO
from mask2former.utils.label_maps import Array

RATIOS = {"cityscapes_instance": 0.005, "cityscapes_panoptic_seg": 0.005}  # by evaluator type


def ratio_of(metadata: Any) -> float:
    """Return the boundary width on this dataset as a fraction of the image diagonal."""
    return RATIOS.get(getattr(metadata, "evaluator_type", ""), BOUNDARY_RATIO)


def boundary_distance(height: int, width: int, ratio: float) -> int:
    """Return the boundary width in pixels, at least 1; halves are rounded to even, as published."""
    return max(1, round(ratio * math.sqrt(height**2 + width**2)))


def boundaries(labels: Array, distance: int) -> Array:
    """Return the boundary pixels (H, W) bool of all segments in a map of labels (H, W).

    A pixel is inside its segment if the square of side `2 * distance + 1` around it lies in the image and has
    a single label, so that no two neighbors in it differ. This is computed for all labels at once, by sums
    over rows, then columns.
    """
    on_boundary = np.ones(labels.shape, bool)
    side = 2 * distance + 1
    if min(labels.shape) < side:
        return on_boundary
    across = _any_in_window(_any_in_window(labels[:, 1:] != labels[:, :-1], side - 1, axis=1), side, axis=0)
    # If each row has a single label, all rows have the same one if the middle column has a single label
    down = _any_in_window((labels[1:] != labels[:-1])[:, distance:-distance], side - 1, axis=0)
    on_boundary[distance:-distance, distance:-distance] = across | down
    return on_boundary


def check_ratio(ratio: float | None) -> None:
    """Raise ValueError unless the ratio is in (0, 1) or None."""
    if ratio is not None and not 0 < ratio < 1:
        raise ValueError(f"the boundary ratio is {ratio}, expected a part of the diagonal in (0, 1)")


def _any_in_window(flags: Array, count: int, axis: int) -> Array:
    """Return, for each window of `count` flags along `axis`, True if any of them is set."""
    sums = np.cumsum(np.insert(flags, 0, False, axis), axis, dtype=np.int32)
    end = sums.shape[axis]
    return sums.take(range(count, end), axis) > sums.take(range(end - count), axis)
