"""COCO's compressed run lengths: how many pixels a code stands for, which pycocotools does not check.

A character less 48 holds five bits of a number, the lowest first, and a sixth that says that more follow;
the highest bit of a number is its sign. From the fourth on, a run is told by its difference from the last but
one.
"""

import numpy as np


def count_pixels(counts: str | bytes) -> int:
    """The sum of the runs; that of a sound code is the number of the mask's pixels.

    Raises:
        ValueError: it is no such code.
    """
    text = counts.encode() if isinstance(counts, str) else counts
    digits = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    is_last = digits & 32 == 0
    if not digits.size or not is_last[-1] or digits.min() < 0 or digits.max() > 63:
        raise ValueError("the counts are no run lengths")
    ends = np.flatnonzero(is_last)
    starts = np.append(0, ends[:-1] + 1)
    places = np.arange(digits.size) - np.repeat(starts, ends - starts + 1)
    numbers = np.add.reduceat((digits & 31) << 5 * places, starts)
    numbers -= (digits[ends] >> 4 & 1) << 5 * (places[ends] + 1)
    runs = [numbers[:1], np.cumsum(numbers[1::2]), np.cumsum(numbers[2::2])]
    if any((run < 0).any() for run in runs):
        raise ValueError("the counts hold a negative run")
    return sum(int(run.sum()) for run in runs)
