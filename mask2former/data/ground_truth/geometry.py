"""Where each pixel of an augmented image comes from, and where each point of the original goes.

Flip, resize to the nearest pixel, crop and pad move whole rows and columns. On each axis, any chain of them
is therefore a list of indices for pixels and a line for coordinates; a mask is made once, after the chain.

Shapes: `H, W` the original image's sides, `h, w` those of the augmented one, in pixels; `n` one of those.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

PADDING = -1


class Axis(NamedTuple):
    """One axis of a view.

    `pixels` (n,) is the original row (or column) that each of its rows shows, -1 where it is padding, which
    is at the ends only. The original coordinate x lies at `scale * x + shift`.
    """

    pixels: np.ndarray
    scale: float
    shift: float

    @classmethod
    def whole(cls, size: int) -> Axis:
        """An axis of `size` pixels as it is."""
        return cls(np.arange(size), 1.0, 0.0)

    @property
    def visible(self) -> slice:
        """Which of its pixels are no padding."""
        shown = np.flatnonzero(self.pixels != PADDING)
        return slice(int(shown[0]), int(shown[-1]) + 1) if len(shown) else slice(0, 0)

    def flipped(self) -> Axis:
        """Last pixel first."""
        return Axis(self.pixels[::-1], -self.scale, len(self.pixels) - self.shift)

    def resized(self, size: int) -> Axis:
        """To `size` pixels."""
        ratio = size / len(self.pixels)
        pixels = self.pixels[nearest_pixels(len(self.pixels), size)]
        return Axis(pixels, self.scale * ratio, self.shift * ratio)

    def cropped(self, start: int, size: int) -> Axis:
        """The `size` pixels from `start` on."""
        return Axis(self.pixels[start : start + size], self.scale, self.shift - start)

    def padded(self, count: int) -> Axis:
        """With `count` more at its end."""
        return self._replace(pixels=np.pad(self.pixels, (0, count), constant_values=PADDING))


class View(NamedTuple):
    """Both axes: rows (h), which have y for coordinate, and columns (w), which have x."""

    rows: Axis
    cols: Axis

    @classmethod
    def whole(cls, height: int, width: int) -> View:
        """The view of an image as it is."""
        return cls(Axis.whole(height), Axis.whole(width))

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) in pixels."""
        return len(self.rows.pixels), len(self.cols.pixels)

    def take(self, original: np.ndarray) -> np.ndarray:
        """(H, W) of any type -> (h, w): what the view shows of it, 0 in the padding."""
        seen = np.zeros(self.size, original.dtype)
        rows, cols = self.rows.visible, self.cols.visible
        seen[rows, cols] = _gather(original, self.rows.pixels[rows], self.cols.pixels[cols])
        return seen


def nearest_pixels(size: int, new_size: int) -> np.ndarray:
    """Which pixel of a line of `size` Pillow's NEAREST takes for each of the resized line: (new_size,)."""
    line = Image.fromarray(np.arange(size, dtype=np.int32)[None])
    return np.asarray(line.resize((new_size, 1), Image.Resampling.NEAREST))[0]


def _gather(original: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """`original[rows][:, cols]`; picking columns costs more than copying rows, so it is done on fewer."""
    low, high = rows.min(initial=len(original)), rows.max(initial=0) + 1
    if high - low < len(rows):
        return original[low:high].take(cols, axis=1).take(rows - low, axis=0)
    return original.take(rows, axis=0).take(cols, axis=1)
