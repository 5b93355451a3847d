"""Validation of COCO's two forms of masks, polygons and run lengths, for training and evaluation.

pycocotools checks neither: it loops forever over run lengths that end early, and allocates without limit for
points that are far away.

Each character of compressed run lengths minus 48 holds five bits of a number, lowest first, and a sixth bit
that is set if more characters follow; the highest of the five bits in the last one is the sign. From the
fourth run on, the number is the difference to the run before the previous one.

Shapes: `H, W` the image's sides in pixels, `P` corners of polygons.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mask2former.utils.messages import brief

FAR = 100  # times the image's longer side: the farthest point
MAX_DIGITS = 7  # of a number in a compressed code: 35 bits, more than pycocotools stores
MAX_PIXELS = 2**32 - 1  # of a mask in pycocotools


def is_polygon(points: Any) -> bool:
    """Return True for a flat list or array x0, y0, x1, y1, x2, y2, ... of at least three points."""
    flat = points.ndim == 1 if isinstance(points, np.ndarray) else isinstance(points, list)
    return flat and len(points) >= 6 and len(points) % 2 == 0


def check_points(polygons: Sequence[Any], size: tuple[int, int]) -> np.ndarray:
    """Return the corners (P, 2) of polygons of an image of `size` (H, W).

    Raises:
        ValueError: a point is not a number, not finite or far outside.
    """
    corners = np.concatenate([np.fromiter(points, np.float64) for points in polygons]).reshape(-1, 2)
    if not (np.abs(corners) <= FAR * max(size)).all():
        raise ValueError(f"a point lies outside of {FAR} times the image's side")
    return corners


def checked_rle(code: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Return an RLE of an image of `size` (H, W) for pycocotools; the runs of a list become integers.

    Raises:
        ValueError: the size is another one, or the counts do not cover the image; the message says what they
            look like.
    """
    for key in ("size", "counts"):
        if key not in code:
            raise ValueError(f"no '{key}' in an RLE")
    given, counts, pixels = code["size"], code["counts"], math.prod(size)
    given = tuple(given) if isinstance(given, list) else given
    if given != size:
        rotated = given == size[::-1]
        hint = "; 'size' must be [height, width], not [width, height]" if rotated else ""
        raise ValueError(f"a mask of (height, width) {brief(given)} for an image of {size}{hint}")
    if pixels > MAX_PIXELS:
        raise ValueError(f"a mask of (height, width) {size} has too many pixels for an RLE")
    if isinstance(counts, list):
        counts = [_run(value) for value in counts]
        total = sum(counts)
    elif isinstance(counts, (str, bytes)):
        total = count_pixels(counts)
    else:
        raise ValueError(f"the counts are {brief(counts)}, expected a list or a text")
    if total != pixels:
        what = f"the counts do not add up to the size: {brief(total)} of {pixels} pixels"
        raise ValueError(what + _what_counts_look_like(counts, pixels))
    return {"size": list(size), "counts": counts}


def _run(value: Any) -> int:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0 and value % 1 == 0:
        return int(value)
    pairs = "; (start, length) pairs are not COCO's" if isinstance(value, list) and len(value) == 2 else ""
    raise ValueError(f"the counts hold {brief(value)}, which is not the length of a run{pairs}")


def _what_counts_look_like(counts: list[int] | str | bytes, pixels: int) -> str:
    """Return the probable mistake in counts with a wrong sum, as part of a message."""
    if isinstance(counts, list) and len(counts) >= 4 and len(counts) % 2 == 0:
        starts, ends = counts[::2], [sum(counts[i : i + 2]) for i in range(0, len(counts), 2)]
        if all(end < start for end, start in zip(ends, starts[1:], strict=False)) and ends[-1] <= pixels + 1:
            return "; they look like (start, length) pairs, but must be lengths of runs only"
    total = sum(counts) if isinstance(counts, list) else count_pixels(counts)
    return "; the runs end early, perhaps the last one is missing" if total < pixels else ""


def count_pixels(counts: str | bytes) -> int:
    """Return the sum of the runs, which is the number of pixels of the mask if the code is valid.

    Raises:
        ValueError: these are no run lengths, or one is negative.
    """
    text = counts.encode() if isinstance(counts, str) else counts
    digits = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    is_last = digits & 32 == 0
    if not digits.size or not is_last[-1] or digits.min() < 0 or digits.max() > 63:
        listed = re.fullmatch(rb"[\s\[]*\d+([\s,]+\d+)+[\s\]]*", text)
        hint = " but numbers as text, which must be a list" if listed else ""
        raise ValueError(f"the counts are no run lengths{hint}")
    ends = np.flatnonzero(is_last)
    starts = np.append(0, ends[:-1] + 1)
    places = np.arange(digits.size) - np.repeat(starts, ends - starts + 1)
    if places.max() >= MAX_DIGITS:
        raise ValueError("the counts hold a run that is too long")
    numbers = np.add.reduceat((digits & 31) << 5 * places, starts)
    numbers -= (digits[ends] >> 4 & 1) << 5 * (places[ends] + 1)
    runs = [numbers[:1], np.cumsum(numbers[1::2]), np.cumsum(numbers[2::2])]
    if any((run < 0).any() for run in runs):
        raise ValueError("the counts hold a negative run")
    return sum(int(run.sum()) for run in runs)
