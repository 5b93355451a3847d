"""Mask logits at output size, tile by tile.

The logits cover the padded image. They are resized to it, cropped to the image and resized to the output
size, bilinearly each time, as the published models are evaluated. All of this is linear and separable: one
matrix per axis does it, and a tile of the output needs only a few of its entries.

A resized value lies between the smallest and the largest of the values it is interpolated from. These bounds
tell before resizing which maps can matter in a tile; only those are resized.

Shapes: `n` maps, `s` the length of a map's axis, `t` its length after resizing, `r, c` rows and columns of
the source of a tile, `R, C` those of the tile, `H, W` the sides of the output.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from math import isqrt
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from mask2former.modeling.predictions import Sizes
from mask2former.utils.memory import is_out_of_memory

COPIES = 4  # upper limit of copies of a tile's maps held at a time: resized maps and intermediate results
CPU_TILE = 192**2  # pixels: in larger tiles more maps matter
CPU_BUDGET = 64 * 2**20  # bytes: more would not stay in the CPU's caches
ROUNDING = 1e-4  # relative tolerance of the bounds; closer contests are decided by the values themselves

T = TypeVar("T")
ResizeStep = tuple[tuple[int, int], tuple[int, int]]  # size to resize to, and size to crop to


class Tile(NamedTuple):
    """A rectangle of the output, in pixels."""

    rows: range
    columns: range

    @property
    def area(self) -> int:
        """Return the number of pixels."""
        return len(self.rows) * len(self.columns)

    def of(self, maps: Tensor) -> Tensor:
        """Return a view of the tile's part of maps (..., H, W)."""
        return maps[..., self.rows.start : self.rows.stop, self.columns.start : self.columns.stop]

    def flipped(self, width: int) -> "Tile":
        """Return the tile's place in an output of that width mirrored left to right."""
        return Tile(self.rows, range(width - self.columns.stop, width - self.columns.start))

    def halves(self) -> list["Tile"]:
        """Return the right and the left half."""
        middle = len(self.columns) // 2
        return [Tile(self.rows, self.columns[middle:]), Tile(self.rows, self.columns[:middle])]


class AxisResizing(NamedTuple):
    """Resizing of one axis: position `i` of the result is a mean of positions `first[i]` to `last[i]`.

    `weights` is (s, t) with columns that add up to 1; `reach` is the largest number of positions averaged.
    """

    weights: Tensor
    first: list[int]
    last: list[int]
    reach: int

    def source(self, positions: range) -> range:
        """Return the source positions that `positions` of the result depend on."""
        return range(self.first[positions[0]], self.last[positions[-1]] + 1)

    def part(self, positions: range) -> Tensor:
        """Return the weights (s', t') of `positions` of the result, for their source alone."""
        return Tile(self.source(positions), positions).of(self.weights)


class Resizing(NamedTuple):
    """Resizing of maps (n, h, w) to (n, H, W)."""

    rows: AxisResizing
    columns: AxisResizing

    def source_tile(self, tile: Tile) -> Tile:
        """Return the rectangle of the maps that the tile depends on."""
        return Tile(self.rows.source(tile.rows), self.columns.source(tile.columns))

    def source(self, maps: Tensor, tile: Tile) -> Tensor:
        """Return the part (n, r, c) of the maps that the tile depends on."""
        return self.source_tile(tile).of(maps)

    def resize(self, source: Tensor, tile: Tile) -> Tensor:
        """Compute the tile (n, R, C) from its source (n, r, c)."""
        return self.rows.part(tile.rows).T @ (source @ self.columns.part(tile.columns))

    def bounds(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Return the minimum and the maximum of every neighborhood in a tile's source.

        Each pixel of the tile is interpolated within one of these neighborhoods, so that its value lies
        between the two.
        """
        windows = min(self.rows.reach, source.shape[1]), min(self.columns.reach, source.shape[2])
        return -sliding_max(-source, windows), sliding_max(source, windows)


def to_output(maps: Tensor, sizes: Sizes) -> Resizing:
    """Return the resizing of mask logits (n, h, w) to the output size."""
    return resizing(maps.shape[-2:], [(sizes.padded, sizes.image), (sizes.output, sizes.output)], maps.device)


def resizing(size: Sequence[int], steps: Sequence[ResizeStep], device: torch.device) -> Resizing:
    """Return the resizing of maps of `size` in several steps."""
    along = ([(new[dim], kept[dim]) for new, kept in steps] for dim in (0, 1))
    return Resizing(*(_axis(length, axis, device) for length, axis in zip(size, along, strict=True)))


def _axis(length: int, steps: Sequence[tuple[int, int]], device: torch.device) -> AxisResizing:
    """Obtain the matrix of one axis by resizing the identity matrix."""
    weights = torch.eye(length)
    for new, kept in steps:
        weights = F.interpolate(weights[None], size=new, mode="linear", align_corners=False)[0, :, :kept]
    used = (weights > 0).int()
    first, last = used.argmax(0), length - 1 - used.flip(0).argmax(0)
    return AxisResizing(weights.to(device), first.tolist(), last.tolist(), int((last - first).max()) + 1)


def sliding_max(maps: Tensor, window: tuple[int, int]) -> Tensor:
    """Return the maximum of each window of maps (n, h, w): (n, h - rows + 1, w - columns + 1)."""
    for dim, length in zip((1, 2), window, strict=True):
        count = maps.shape[dim] - length + 1
        maps = reduce(torch.maximum, (maps.narrow(dim, start, count) for start in range(length)))
    return maps


def contenders(lower: Tensor, upper: Tensor) -> Tensor:
    """Return which of n maps with these bounds (n, ...) may be the largest at some position: (n,) bool.

    At least one is; with NaN among the values, all are.
    """
    within_rounding = torch.add(upper, upper.abs(), alpha=ROUNDING)  # values may be negative
    return ~(within_rounding < lower.amax(0)).flatten(1).all(1)


def pixels_within(budget: int, num_maps: float, device: torch.device) -> int:
    """Return how many pixels of float32 maps fit into `budget` bytes (and a CPU's caches), at least 1."""
    on_cpu = device.type == "cpu"
    pixels = max(1, int((min(budget, CPU_BUDGET) if on_cpu else budget) / (4 * COPIES * max(1.0, num_maps))))
    return min(pixels, CPU_TILE) if on_cpu else pixels


def tiles_within(budget: int, size: tuple[int, int], num_maps: float, device: torch.device) -> list[Tile]:
    """Return tiles of an output (H, W) for which `num_maps` float32 maps fit into `budget` bytes.

    On a CPU tiles are small squares. Elsewhere they are as large as possible, because each costs a few kernel
    launches.
    """
    pixels = pixels_within(budget, num_maps, device)
    columns = min(isqrt(pixels) if device.type == "cpu" else pixels, size[1])
    rows = pixels // columns
    return [
        Tile(range(size[0])[top : top + rows], range(size[1])[left : left + columns])
        for top in range(0, size[0], rows)
        for left in range(0, size[1], columns)
    ]


def over_tiles(work: Callable[[Tile], T], tiles: Iterable[Tile]) -> list[T]:
    """Call `work` on each tile in turn and return the results.

    If memory runs out, the tile is halved, and `work` is called again on each half; a single column that does
    not fit is an error.
    """
    results: list[T] = []
    pending = list(tiles)[::-1]
    while pending:
        tile = pending.pop()
        try:
            results.append(work(tile))
        except (RuntimeError, MemoryError) as error:
            if len(tile.columns) == 1 or not is_out_of_memory(error):
                raise
            pending += tile.halves()
    return results
