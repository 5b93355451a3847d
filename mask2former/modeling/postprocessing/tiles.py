"""Mask logits at output size, tile by tile.

The logits cover the padded image. They are resized to it, cropped to the image and resized to the output
size, bilinearly each time, as the published models are evaluated. All of that is linear, and each axis stands
alone: one matrix an axis does it, and the few of its entries that a tile of the output needs give that tile.

Whatever is resized lies between the least and the largest of the numbers it is mixed from. So it is known
before resizing which maps can matter in a tile, and only those are resized.

Shapes: `n` maps, `s` the length of a map's axis, `t` the length it is resized to, `r, c` rows and columns of
what a tile is made of, `R, C` its own, `H, W` the sides of the output.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from math import isqrt
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")  # of GPUs; of the CPU
COPIES = 4  # how many times over a tile's maps are held, at most: as resized, and what is made of them
CPU_TILE = 192**2  # pixels: larger tiles have more maps that matter
CPU_BUDGET = 64 * 2**20  # bytes: what is made of more maps at a time leaves the caches
ROUNDING = 1e-4  # relative; a contest closer than that is decided by the numbers themselves

Result = TypeVar("Result")
Step = tuple[tuple[int, int], tuple[int, int]]  # the size that maps are resized to, and the part of it kept


class Sizes(NamedTuple):
    """(height, width) in pixels of the padded image, the image in its top left corner, and the result."""

    padded: tuple[int, int]
    image: tuple[int, int]
    output: tuple[int, int]


class Tile(NamedTuple):
    """A rectangle of the output."""

    rows: range
    columns: range

    @property
    def area(self) -> int:
        """In pixels."""
        return len(self.rows) * len(self.columns)

    def of(self, maps: Tensor) -> Tensor:
        """The tile's part of maps (..., H, W), as a view."""
        return maps[..., self.rows.start : self.rows.stop, self.columns.start : self.columns.stop]

    def mirrored(self, width: int) -> "Tile":
        """Where it lies in an output of that width after left and right are swapped."""
        return Tile(self.rows, range(width - self.columns.stop, width - self.columns.start))

    def halves(self) -> list["Tile"]:
        """Its right and its left half."""
        middle = len(self.columns) // 2
        return [Tile(self.rows, self.columns[middle:]), Tile(self.rows, self.columns[:middle])]


class Axis(NamedTuple):
    """How one axis is resized: new place `i` is made of places `first[i]` to `last[i]`.

    `weights` is (s, t), those of a new place add up to 1; `reach` is how many places make one, at most.
    """

    weights: Tensor
    first: list[int]
    last: list[int]
    reach: int

    def source(self, places: range) -> range:
        """The places that the new `places` are made of."""
        return range(self.first[places[0]], self.last[places[-1]] + 1)

    def part(self, places: range) -> Tensor:
        """The weights (s', t') of the new `places`, for their source alone."""
        return Tile(self.source(places), places).of(self.weights)


class Resizing(NamedTuple):
    """How maps (n, h, w) become maps (n, H, W)."""

    rows: Axis
    columns: Axis

    def source(self, maps: Tensor, tile: Tile) -> Tensor:
        """What the tile is made of, (n, r, c)."""
        return self.source_tile(tile).of(maps)

    def source_tile(self, tile: Tile) -> Tile:
        """The rectangle of the maps that the tile is made of."""
        return Tile(self.rows.source(tile.rows), self.columns.source(tile.columns))

    def resize(self, source: Tensor, tile: Tile) -> Tensor:
        """The tile (n, R, C), from its source (n, r, c)."""
        return self.rows.part(tile.rows).T @ (source @ self.columns.part(tile.columns))

    def bounds(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """The least and the largest of each neighborhood in a tile's source.

        A pixel of the tile lies in one neighborhood at least, and its value between these two.
        """
        windows = min(self.rows.reach, source.shape[1]), min(self.columns.reach, source.shape[2])
        return -sliding_max(-source, windows), sliding_max(source, windows)


def to_output(maps: Tensor, sizes: Sizes) -> Resizing:
    """How mask logits (n, h, w) come to the output's size."""
    return resizing(maps.shape[-2:], [(sizes.padded, sizes.image), (sizes.output, sizes.output)], maps.device)


def resizing(size: Sequence[int], steps: Sequence[Step], device: torch.device) -> Resizing:
    """How maps of `size` are resized in steps."""
    return Resizing(
        *(_axis(size[dim], [(new[dim], kept[dim]) for new, kept in steps], device) for dim in (0, 1))
    )


def _axis(length: int, steps: Sequence[tuple[int, int]], device: torch.device) -> Axis:
    """How an axis is resized bilinearly in steps: its weights are what becomes of the unit vectors."""
    weights = torch.eye(length)
    for new, kept in steps:
        weights = F.interpolate(weights[None], size=new, mode="linear", align_corners=False)[0, :, :kept]
    used = (weights > 0).int()
    first, last = used.argmax(0), length - 1 - used.flip(0).argmax(0)
    return Axis(weights.to(device), first.tolist(), last.tolist(), reach=int((last - first).max()) + 1)


def sliding_max(maps: Tensor, window: tuple[int, int]) -> Tensor:
    """The maximum of each window of maps (n, h, w): (n, h - rows + 1, w - columns + 1)."""
    for dim, length in zip((1, 2), window, strict=True):
        count = maps.shape[dim] - length + 1
        maps = reduce(torch.maximum, (maps.narrow(dim, start, count) for start in range(length)))
    return maps


def contenders(lower: Tensor, upper: Tensor) -> Tensor:
    """Which of n maps can be the largest at some place, (n,) bool, from bounds (n, ...) of each.

    At least one is; where numbers are NaN, every map.
    """
    return ~(upper * (1 + ROUNDING) < lower.amax(0)).flatten(1).all(1)


def pixels_within(budget: int, num_maps: float, device: torch.device) -> int:
    """Of how many pixels so many float32 maps fit `budget` bytes, at least one; on a CPU, also its caches."""
    on_cpu = device.type == "cpu"
    pixels = max(1, int((min(budget, CPU_BUDGET) if on_cpu else budget) / (4 * COPIES * max(1.0, num_maps))))
    return min(pixels, CPU_TILE) if on_cpu else pixels


def tiles_within(budget: int, size: tuple[int, int], num_maps: float, device: torch.device) -> list[Tile]:
    """The tiles of an output (H, W) that so many float32 maps fit `budget` bytes on.

    On a CPU tiles are small squares; elsewhere they are as large as they may be, as each costs some launches.
    """
    pixels = pixels_within(budget, num_maps, device)
    columns = min(isqrt(pixels) if device.type == "cpu" else pixels, size[1])
    rows = pixels // columns
    return [
        Tile(range(size[0])[top : top + rows], range(size[1])[left : left + columns])
        for top in range(0, size[0], rows)
        for left in range(0, size[1], columns)
    ]


def over_tiles(work: Callable[[Tile], Result], tiles: Iterable[Tile]) -> list[Result]:
    """Call `work` on each tile, in turn.

    Where memory runs out, the tile is halved; a single column that does not fit is an error. `work` may be
    called again on what it has seen.
    """
    results: list[Result] = []
    pending = list(tiles)[::-1]
    while pending:
        tile = pending.pop()
        try:
            results.append(work(tile))
        except RuntimeError as error:
            if len(tile.columns) == 1 or not any(words in str(error) for words in OUT_OF_MEMORY):
                raise
            pending += tile.halves()
    return results
