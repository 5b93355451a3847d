"""Division of an image into overlapping tiles, and the weight of each tile at each pixel.

Shapes: `H, W` the image's sides in pixels, `s` the length of a tile's side.
"""

from itertools import pairwise
from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor

from mask2former.modeling.postprocessing.tiles import Tile


class Interval(NamedTuple):
    """Positions of an axis that the same tiles cover."""

    span: range
    tiles: range


class Axis(NamedTuple):
    """Tiles along one side of an image: their first pixels, in order, and the length of each."""

    starts: tuple[int, ...]
    size: int

    def span(self, index: int) -> range:
        """Return the pixels of a tile."""
        return range(self.starts[index], self.starts[index] + self.size)

    def intervals(self) -> list[Interval]:
        """Return the intervals between all first and last pixels of tiles, in order, with their tiles."""
        edges = sorted({edge for start in self.starts for edge in (start, start + self.size)})
        spans = [range(first, last) for first, last in pairwise(edges)]
        return [Interval(span, self._covering(span)) for span in spans]

    def _covering(self, span: range) -> range:
        covering = [i for i in range(len(self.starts)) if span.start in self.span(i)]
        return range(covering[0], covering[-1] + 1)

    def weights(self, index: int) -> Tensor:
        """Return the weights (s,) of a tile; at each pixel those of all tiles add up to 1.

        They are proportional to the distance to the tile's border, which does not count where it is the
        image's border too.
        """
        span, total = self.span(index), torch.zeros(self.size)
        for other in range(len(self.starts)):
            if other != index and self.starts[other] < span.stop and self.span(other).stop > span.start:
                total += self._distances(other, span)
        own = self._distances(index, span)
        return own / (own + total)

    def _distances(self, index: int, span: range) -> Tensor:
        """Return the distance of each pixel of `span` to the inner border of a tile, 0 outside of it."""
        pixels, tile = torch.arange(span.start, span.stop) + 0.5, self.span(index)
        distance = torch.full((len(span),), float(self.size))
        if index > 0:
            distance = distance.minimum(pixels - tile.start)
        if index < len(self.starts) - 1:
            distance = distance.minimum(tile.stop - pixels)
        return distance.clamp(min=0)


class Grid(NamedTuple):
    """Tiles of an image, row by row."""

    rows: Axis
    columns: Axis

    @property
    def size(self) -> tuple[int, int]:
        """Return (H, W)."""
        return self.rows.span(-1).stop, self.columns.span(-1).stop

    @property
    def number(self) -> int:
        """Return the number of tiles."""
        return len(self.rows.starts) * len(self.columns.starts)

    def tile(self, row: int, column: int) -> Tile:
        """Return a tile."""
        return Tile(self.rows.span(row), self.columns.span(column))


def make_grid(size: tuple[int, int], tile: int, overlap: float) -> Grid:
    """Return square tiles, of side `tile` or less if the image (H, W) is smaller.

    Neighbors share at least the part `overlap` of a side. Tiles lie at equal distances, up to rounding.
    """
    return Grid(*(_axis(length, tile, overlap) for length in size))


def _axis(length: int, tile: int, overlap: float) -> Axis:
    size = min(tile, length)
    step = max(1, int(size * (1 - overlap)))
    gaps = ceil((length - size) / step)
    return Axis(tuple(i * (length - size) // max(gaps, 1) for i in range(gaps + 1)), size)
