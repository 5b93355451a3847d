"""Division of an image into tiles: every pixel covered, overlaps as asked, weights that add up to one."""

import numpy as np
import pytest
import torch

from mask2former.tiling.grid import make_grid

CASES = [
    ((100, 100), 100, 0.25),
    ((100, 230), 64, 0.25),
    ((65, 64), 64, 0.5),
    ((300, 40), 64, 0.0),
    ((128, 129), 64, 0.0),
    ((50, 333), 32, 0.9),
    ((1, 7), 3, 0.25),
]


def tiles(grid):
    rows, columns = (range(len(axis.starts)) for axis in grid)
    return [(row, column) for row in rows for column in columns]


@pytest.mark.parametrize(("size", "side", "overlap"), CASES)
def test_tiles_cover_each_pixel_and_lie_in_the_image(size, side, overlap):
    grid = make_grid(size, side, overlap)
    covered = np.zeros(size, int)
    for row, column in tiles(grid):
        rows, columns = grid.tile(row, column)
        assert (len(rows), len(columns)) == (min(side, size[0]), min(side, size[1]))
        assert rows.start >= 0 and columns.start >= 0 and rows.stop <= size[0] and columns.stop <= size[1]
        covered[rows.start : rows.stop, columns.start : columns.stop] += 1
    assert covered.min() >= 1
    assert grid.size == size and grid.number == len(tiles(grid))


@pytest.mark.parametrize(("size", "side", "overlap"), CASES)
def test_neighbors_share_the_overlap_and_no_tile_is_needless(size, side, overlap):
    for axis, length in zip(make_grid(size, side, overlap), size, strict=True):
        shared = [axis.span(i).stop - axis.starts[i + 1] for i in range(len(axis.starts) - 1)]
        assert all(common >= int(overlap * axis.size) for common in shared)
        # With a tile less, tiles at the largest allowed distance would not reach the end
        step = max(1, int(axis.size * (1 - overlap)))
        assert len(shared) == 0 or axis.size + (len(shared) - 1) * step < length


@pytest.mark.parametrize(("size", "side", "overlap"), CASES)
def test_weights_add_up_to_one_at_each_pixel(size, side, overlap):
    grid = make_grid(size, side, overlap)
    total = torch.zeros(size)
    for row, column in tiles(grid):
        window = grid.rows.weights(row)[:, None] * grid.columns.weights(column)
        assert (window >= 0).all()
        place = grid.tile(row, column)
        place.of(total).add_(window)
    torch.testing.assert_close(total, torch.ones(size))


def test_weights_fall_to_the_inner_border_alone():
    axis = make_grid((1, 112), 64, 0.25).columns
    assert axis.starts == (0, 48)
    left, right = axis.weights(0), axis.weights(1)
    assert (left[:48] == 1).all() and (right[16:] == 1).all()
    assert (left[48:].diff() < 0).all() and left[-1] < 0.05
    torch.testing.assert_close(left[48:], right[:16].flip(0))


@pytest.mark.parametrize(("size", "side", "overlap"), CASES)
def test_intervals_have_the_tiles_that_cover_them(size, side, overlap):
    axis = make_grid(size, side, overlap).columns
    pixels = []
    for span, covering in axis.intervals():
        pixels += span
        for pixel in span:
            assert [i for i in range(len(axis.starts)) if pixel in axis.span(i)] == list(covering)
    assert pixels == list(range(size[1]))
