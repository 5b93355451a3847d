"""Where each pixel of an augmented picture comes from.

Flip, resize to the nearest pixel, crop and pad move whole rows and columns. Any chain of them is therefore
two lists of indices, and a mask is cut from its original once, after the chain.

Letters: `H, W` the original picture's sides, `h, w` those of the augmented one, in pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

PADDING = -1


class View(NamedTuple):
    """The original row (h,) and column (w,) that each row and column shows; -1 where it is padding."""

    rows: np.ndarray
    cols: np.ndarray

    @classmethod
    def whole(cls, height: int, width: int) -> View:
        """The view of a picture as it is."""
        return cls(np.arange(height), np.arange(width))

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) in pixels."""
        return len(self.rows), len(self.cols)

    def take(self, original: np.ndarray, fill: int = 0) -> np.ndarray:
        """(H, W) of any type -> (h, w): what the view shows of it, `fill` in the padding."""
        # Index -1 reads something, overwritten below; `take` keeps rows contiguous, as indexing would not.
        seen = original.take(self.rows, axis=0).take(self.cols, axis=1)
        seen[self.rows == PADDING] = fill
        seen[:, self.cols == PADDING] = fill
        return seen


def nearest_pixels(size: int, new_size: int) -> np.ndarray:
    """Which pixel of a line of `size` Pillow's NEAREST takes for each of the resized line: (new_size,)."""
    line = Image.fromarray(np.arange(size, dtype=np.int32)[None])
    return np.asarray(line.resize((new_size, 1), Image.Resampling.NEAREST))[0]
