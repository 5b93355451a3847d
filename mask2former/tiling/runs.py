"""Arithmetic of masks as runs of pixels, which takes no more memory and time than the runs.

Pixels are counted down the columns, as in `RunLengthMasks`. Here no run reaches into the next column, so that
rectangles are easily cut out.

Shapes: `H, W` the image's sides in pixels, `m` runs (first pixel, and the one after the last).
"""

from collections.abc import Sequence

import numpy as np

from mask2former.modeling.postprocessing.tiles import Tile
from mask2former.utils.label_maps import Array


def placed(runs: Array, place: Tile, height: int) -> Array:
    """Return the runs (m, 2) of a tile's mask as runs in the image of `height`, split at columns."""
    tall = len(place.rows)
    first, last = runs[:, 0] // tall, (runs[:, 1] - 1) // tall
    count = last - first + 1
    which = np.repeat(np.arange(len(runs)), count)
    column = np.arange(len(which)) - np.repeat(count.cumsum() - count, count) + first[which]
    begin = np.maximum(runs[which, 0] - column * tall, 0)
    end = np.minimum(runs[which, 1] - column * tall, tall)
    offset = (column + place.columns.start) * height + place.rows.start
    return np.stack([begin + offset, end + offset], axis=1)


def clipped(runs: Array, region: Tile, height: int) -> Array:
    """Return the part of a mask inside a rectangle of the image."""
    column = runs[:, 0] // height
    inside = (column >= region.columns.start) & (column < region.columns.stop)
    runs, top = runs[inside], column[inside] * height
    begin = np.maximum(runs[:, 0], top + region.rows.start)
    end = np.minimum(runs[:, 1], top + region.rows.stop)
    return np.stack([begin, end], axis=1)[begin < end]


def area(runs: Array) -> int:
    """Return the number of pixels of a mask."""
    return int((runs[:, 1] - runs[:, 0]).sum())


def intersection(first: Array, second: Array) -> int:
    """Return the number of pixels that two masks share."""
    if not len(first) or not len(second):
        return 0
    return int((_pixels_before(second[:, 1], first) - _pixels_before(second[:, 0], first)).sum())


def _pixels_before(positions: Array, runs: Array) -> Array:
    """Return how many pixels of a mask lie before each position."""
    lengths = runs[:, 1] - runs[:, 0]
    index = np.searchsorted(runs[:, 0], positions, side="right") - 1  # the last run that begins before
    whole = (lengths.cumsum() - lengths)[index]
    return np.where(index < 0, 0, whole + np.minimum(positions - runs[index, 0], lengths[index]))


def union(masks: Sequence[Array], height: int = 0) -> Array:
    """Return the runs of the pixels of any of the masks, merged where they touch.

    With the image's `height`, runs do not reach into the next column.
    """
    runs = np.concatenate(masks)
    runs = runs[np.argsort(runs[:, 0], kind="stable")]
    reach = np.maximum.accumulate(runs[:, 1]) if len(runs) else runs[:, 1]
    begins = np.ones(len(runs), bool)
    begins[1:] = runs[1:, 0] > reach[:-1]
    if height:
        begins[1:] |= (runs[1:, 0] % height == 0) & (runs[1:, 0] > runs[:-1, 0])
    ends = np.append(begins[1:], True)[: len(runs)]
    return np.stack([runs[begins, 0], reach[ends]], axis=1)


def dense(runs: Array, region: Tile, height: int) -> Array:
    """Return the part (R, C) bool of a mask inside a rectangle of the image."""
    rows, columns = len(region.rows), len(region.columns)
    runs = clipped(runs, region, height)
    column = runs[:, 0] // height
    runs = (
        runs - (column * height + region.rows.start - (column - region.columns.start) * (rows + 1))[:, None]
    )
    steps = np.zeros(columns * (rows + 1), np.int8)  # a row more, in which runs end at the latest
    steps[runs[:, 0]], steps[runs[:, 1]] = 1, -1
    return steps.cumsum(dtype=np.int8).view(bool).reshape(columns, rows + 1)[:, :rows].T
