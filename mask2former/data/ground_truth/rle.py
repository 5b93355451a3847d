"""Validation of COCO's compressed run lengths, which pycocotools does not check.

Each character minus 48 holds five bits of a number, lowest first, and a sixth bit that is set if more
characters follow; the highest of the five bits in the last one is the sign. From the fourth run on, the
number is the difference to the run before the previous one.
"""

import numpy as np


def count_pixels(counts: str | bytes) -> int:
    """Return the sum of the runs, which is the number of pixels of the mask if the code is valid.

    Raises:
        ValueError: these are no run lengths, or one is negative.
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
