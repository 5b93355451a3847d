"""Arithmetic of runs against the same on dense masks."""

import numpy as np
import pytest

from mask2former.modeling.postprocessing.tiles import Tile
from mask2former.tiling import runs as run_lengths

SIZE = (13, 17)


def runs_of(mask, split=True):
    """The runs of a mask (H, W) down its columns; `split` at the ends of columns."""
    height = len(mask)
    flat = mask.T.ravel()
    found, start = [], None
    for i in range(len(flat) + 1):
        inside = i < len(flat) and flat[i]
        if start is not None and (not inside or (split and i % height == 0)):
            found.append((start, i))
            start = None
        if inside and start is None:
            start = i
    return np.array(found, np.int64).reshape(-1, 2)


def random_mask(seed, size=SIZE):
    rng = np.random.default_rng(seed)
    mask = rng.random(size) < rng.choice([0.1, 0.5, 0.95])
    mask[:, 3:6] |= rng.random() < 0.5  # whole columns
    return mask


WHOLE = Tile(range(SIZE[0]), range(SIZE[1]))


@pytest.mark.parametrize("seed", range(6))
def test_runs_of_a_tile_are_placed_in_the_image(seed):
    mask, place = random_mask(seed, (5, 7)), Tile(range(4, 9), range(8, 15))
    image = np.zeros(SIZE, bool)
    image[4:9, 8:15] = mask
    placed = run_lengths.placed(runs_of(mask, split=False), place, SIZE[0])
    assert np.array_equal(placed, runs_of(image))


@pytest.mark.parametrize("seed", range(6))
def test_a_rectangle_of_a_mask(seed):
    mask, part = random_mask(seed), Tile(range(2, 11), range(4, 9))
    cut = np.zeros(SIZE, bool)
    cut[2:11, 4:9] = mask[2:11, 4:9]
    assert np.array_equal(run_lengths.clipped(runs_of(mask), part, SIZE[0]), runs_of(cut))
    assert np.array_equal(run_lengths.dense(runs_of(mask), part, SIZE[0]), mask[2:11, 4:9])
    assert np.array_equal(run_lengths.dense(runs_of(mask), WHOLE, SIZE[0]), mask)


@pytest.mark.parametrize("seed", range(6))
def test_area_intersection_and_union(seed):
    first, second = random_mask(seed), random_mask(seed + 100)
    runs = runs_of(first), runs_of(second)
    assert run_lengths.area(runs[0]) == first.sum()
    assert run_lengths.intersection(*runs) == (first & second).sum()
    assert np.array_equal(run_lengths.union(runs, SIZE[0]), runs_of(first | second))
    assert np.array_equal(run_lengths.union(runs), runs_of(first | second, split=False))


def test_empty_masks():
    empty, mask = np.empty((0, 2), np.int64), runs_of(random_mask(1))
    assert run_lengths.intersection(empty, mask) == run_lengths.intersection(mask, empty) == 0
    assert np.array_equal(run_lengths.union([empty, mask], SIZE[0]), mask)
    assert run_lengths.union([empty, empty]).shape == (0, 2)
    assert run_lengths.placed(empty, WHOLE, SIZE[0]).shape == (0, 2)
    assert not run_lengths.dense(empty, WHOLE, SIZE[0]).any()
