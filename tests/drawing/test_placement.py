"""The grid of free places: who owns a cell, and what a label may cover."""

import numpy as np
import pytest

from mask2former.drawing.placement import MOST_COVERED, Grid
from mask2former.drawing.shapes import mask_shape

SIDE = 120


def shape(top, left, height, width):
    mask = np.zeros((SIDE, SIDE), bool)
    mask[top : top + height, left : left + width] = True
    return mask_shape(mask)


def overlap(first, second):
    """Return the pixels that two boxes share."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(0, width) * max(0, height)


@pytest.mark.parametrize("cell", [1, 3, 7, 50])
def test_a_cell_belongs_to_the_smallest_region_in_it(cell):
    size = (47, 90)
    rng = np.random.default_rng(0)
    masks = [rng.random(size) < 0.2, rng.random(size) < 0.03, rng.random(size) < 0.005]
    grid = Grid(size, [mask_shape(mask) for mask in masks], cell)
    for row in range(-(-47 // cell)):
        for column in range(-(-90 // cell)):
            where = np.s_[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
            owners = [number for number, mask in enumerate(masks, start=1) if mask[where].any()]
            assert grid.owner[row, column] == max(owners, default=0)
    np.testing.assert_array_equal(grid.areas, [(grid.owner == k).sum() for k in range(4)])


def test_a_label_inside_lies_in_its_region_alone():
    grid = Grid((SIDE, SIDE), [shape(0, 0, 120, 120), shape(40, 20, 40, 80)], 3)
    left, top, right, bottom = grid.take(1, 60, 12, beside=False)
    assert (right - left, bottom - top) == (60, 12)
    assert not overlap((left, top, right, bottom), (20, 40, 100, 80))
    assert grid.take(2, 81, 12, beside=False) is None  # a pixel too wide
    assert grid.take(2, 60, 40, beside=False) is None  # it would cover most of the region


@pytest.mark.parametrize("corner", [(50, 50), (0, 0), (0, 110), (110, 0), (110, 110)])
def test_a_label_beside_touches_the_region_and_stays_in_the_image(corner):
    grid = Grid((SIDE, SIDE), [shape(*corner, 10, 10)], 2)
    box = grid.take(1, 50, 12, beside=True)
    assert box[0] >= 0 and box[1] >= 0 and box[2] <= SIDE and box[3] <= SIDE
    region = (corner[1], corner[0], corner[1] + 10, corner[0] + 10)
    assert not overlap(box, region)
    near = (box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1)
    assert overlap(near, region)


def test_labels_do_not_take_the_same_place_and_leave_most_of_a_region_free():
    grid = Grid((SIDE, SIDE), [shape(0, 0, 120, 120)], 2)
    boxes = list(iter(lambda: grid.take(1, 40, 12, beside=False), None))
    assert len(boxes) >= 5 and not any(overlap(a, b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert sum(map(overlap, boxes, boxes)) <= MOST_COVERED * SIDE**2


def test_a_label_larger_than_the_image_has_no_place():
    grid = Grid((SIDE, SIDE), [shape(0, 0, 120, 120)], 2)
    assert grid.take(1, SIDE + 1, 10, beside=False) is None
    assert grid.take(1, 10, SIDE + 1, beside=True) is None
