"""Padding in DETR's transformer: no cell attends to it, and positions are relative to the image inside of it.

Shapes: `B` images, `H, W` the padded image's sides, `h, w` those of a map of it, `S` its h * w cells, `C`
channels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mask2former.modeling.layers.position import sine_position

Size = tuple[int, int]


class CellLayout(NamedTuple):
    """Positions of a map's cells and which are padding.

    Without padding, positions (S, C) are the same for all images, and `blocked` is None; else positions are
    (B, S, C), and `blocked` (B, 1, S) is True for padding.
    """

    position: Tensor
    blocked: Tensor | None


def lay_out_cells(
    sizes: Sequence[Size], padded_size: Size, shape: Size, channels: int, device: torch.device
) -> CellLayout:
    """Return the layout of a map (h, w) of images of `sizes`, padded to (H, W) at the bottom and right."""
    shown = [
        (_shown(size[0], padded_size[0], shape[0]), _shown(size[1], padded_size[1], shape[1]))
        for size in sizes
    ]
    if all(each == shape for each in shown):
        return CellLayout(sine_position(shape, channels, device), None)
    position = torch.zeros(len(shown), *shape, channels, device=device)
    blocked = torch.ones(len(shown), *shape, dtype=torch.bool, device=device)
    for image, (rows, columns) in enumerate(shown):
        encoded = sine_position((rows, columns), channels, device)
        position[image, :rows, :columns] = encoded.unflatten(0, (rows, columns))
        blocked[image, :rows, :columns] = False
    return CellLayout(position.flatten(1, 2), blocked.flatten(1)[:, None])


def _shown(side: int, padded_side: int, cells: int) -> int:
    """Return how many cells of an axis show the image: those whose pixel, chosen as by DETR, is inside."""
    if side == padded_side:
        return cells
    inside = (torch.arange(padded_side) < side).float()
    return int(F.interpolate(inside[None, None], size=cells, mode="nearest").sum())
