"""Positions and padding of cells against a version that counts the cells of a mask, as DETR's paper does."""

import math

import pytest
import torch
from torch.nn import functional as F

from mask2former.modeling.detr.padding import lay_out_cells
from mask2former.modeling.layers.position import sine_position

CHANNELS = 16


def slow_layout(size, padded_size, shape):
    """Return (h, w, C) positions and (h, w) padding of one image, from a mask of its pixels."""
    pixels = torch.zeros(1, 1, *padded_size)
    pixels[..., : size[0], : size[1]] = 1
    shown = F.interpolate(pixels, size=shape)[0, 0] == 1
    position = torch.zeros(*shape, CHANNELS, dtype=torch.float64)
    for row, column in shown.nonzero().tolist():
        for axis, place, count in (
            (0, shown[: row + 1, column].sum(), shown[:, column].sum()),
            (1, shown[row, : column + 1].sum(), shown[row].sum()),
        ):
            for k in range(CHANNELS // 4):
                angle = 2 * math.pi * int(place) / int(count) / 10000 ** (4 * k / CHANNELS)
                start = axis * CHANNELS // 2 + 2 * k
                position[row, column, start : start + 2] = torch.tensor([math.sin(angle), math.cos(angle)])
    return position, ~shown


@pytest.mark.parametrize("shape", [(4, 5), (7, 3)])
def test_layouts_of_images_of_different_sizes(shape):
    sizes, padded = [(128, 100), (97, 160), (128, 160), (33, 31)], (128, 160)
    position, blocked = lay_out_cells(sizes, padded, shape, CHANNELS, torch.device("cpu"))
    assert blocked is not None and blocked.shape == (4, 1, shape[0] * shape[1])
    for image, size in enumerate(sizes):
        expected, padding = slow_layout(size, padded, shape)
        assert torch.equal(blocked[image, 0], padding.flatten())
        shown = ~padding.flatten()
        torch.testing.assert_close(
            position[image][shown].double(), expected.flatten(0, 1)[shown], atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("sizes", [[(64, 96)], [(64, 96), (63, 95)]], ids=["none", "less than a cell"])
def test_without_a_padded_cell_all_images_share_their_positions(sizes):
    position, blocked = lay_out_cells(sizes, (64, 96), (2, 3), CHANNELS, torch.device("cpu"))
    assert blocked is None
    assert torch.equal(position, sine_position((2, 3), CHANNELS))
