"""Mapping between an original image and its augmented version, for pixels and for points.

Flipping, nearest-neighbor resizing, cropping and padding move whole rows and columns. So any chain of them
is, on each axis, an array of indices for pixels and a linear function for coordinates; masks are made once,
at the end.

Shapes: `H, W` the original image's sides, `h, w` those of the augmented one, in pixels; `n` one of these, or
the number of segments, of `N`, that are visible.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from mask2former.utils.label_maps import nearest_pixels

PADDING = -1


class AxisGeometry(NamedTuple):
    """The mapping on one axis.

    `pixels` (n,) holds for each row (or column) the original row that it shows, or -1 for padding, which is
    at the ends only. The original coordinate x is at `scale * x + shift`.
    """

    pixels: np.ndarray
    scale: float
    shift: float

    @classmethod
    def identity(cls, size: int) -> AxisGeometry:
        """Return the mapping of an axis of `size` unchanged pixels."""
        return cls(np.arange(size), 1.0, 0.0)

    @property
    def visible(self) -> slice:
        """Return the range of pixels that are not padding."""
        shown = np.flatnonzero(self.pixels != PADDING)
        return slice(int(shown[0]), int(shown[-1]) + 1) if len(shown) else slice(0, 0)

    def flip(self) -> AxisGeometry:
        """Reverse the axis."""
        return AxisGeometry(self.pixels[::-1], -self.scale, len(self.pixels) - self.shift)

    def resize(self, size: int) -> AxisGeometry:
        """Resize the axis to `size` pixels."""
        ratio = size / len(self.pixels)
        pixels = self.pixels[nearest_pixels(len(self.pixels), size)]
        return AxisGeometry(pixels, self.scale * ratio, self.shift * ratio)

    def crop(self, start: int, size: int) -> AxisGeometry:
        """Keep `size` pixels from `start` on."""
        return AxisGeometry(self.pixels[start : start + size], self.scale, self.shift - start)

    def pad(self, count: int) -> AxisGeometry:
        """Append `count` pixels of padding."""
        return self._replace(pixels=np.pad(self.pixels, (0, count), constant_values=PADDING))


class Geometry(NamedTuple):
    """The mapping on both axes: rows (h) with coordinate y, columns (w) with coordinate x."""

    rows: AxisGeometry
    cols: AxisGeometry

    @classmethod
    def identity(cls, height: int, width: int) -> Geometry:
        """Return the mapping of an unchanged image."""
        return cls(AxisGeometry.identity(height), AxisGeometry.identity(width))

    @property
    def size(self) -> tuple[int, int]:
        """Return (h, w) in pixels."""
        return len(self.rows.pixels), len(self.cols.pixels)

    def apply(self, original: np.ndarray) -> np.ndarray:
        """Map an array (H, W) of any type to (h, w); padding is 0."""
        visible = self.rows.visible, self.cols.visible
        rows, cols = self.rows.pixels[visible[0]], self.cols.pixels[visible[1]]
        low, high = rows.min(initial=len(original)), rows.max(initial=0) + 1
        if high - low < len(rows):  # picking columns is slow, so it is done on the fewer rows
            shown = original[low:high].take(cols, axis=1).take(rows - low, axis=0)
        else:
            shown = original.take(rows, axis=0).take(cols, axis=1)
        mapped = np.zeros(self.size, original.dtype)
        mapped[visible] = shown
        return mapped


class GroundTruth(Protocol):
    """The segments of one image."""

    @property
    def classes(self) -> np.ndarray:
        """Return contiguous class ids (N,) int64."""

    def visible(self, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
        """Return the indices (n,) of segments in the augmented image, and their masks (n, h, w) bool."""
