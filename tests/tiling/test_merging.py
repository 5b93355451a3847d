"""Merging across tiles, by hand-made cases and against a slow version on dense masks."""

import numpy as np
import pytest
import torch

from mask2former.modeling.postprocessing.tiles import Tile
from mask2former.structures import Instances, RunLengthMasks
from mask2former.tiling.grid import make_grid
from mask2former.tiling.merging import as_instances, larger_than_tiles, merge, pieces_of

SIZE = (64, 112)
GRID = make_grid(SIZE, 64, 0.25)  # two tiles: columns 0 to 64, and 48 to 112
LEFT, RIGHT = GRID.tile(0, 0), GRID.tile(0, 1)
WHOLE = Tile(range(SIZE[0]), range(SIZE[1]))


def box(left, top, right, bottom, size=SIZE):
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


def instances(masks, scores, labels):
    """Instances of dense masks (N, H, W)."""
    runs = []
    for mask in masks:
        steps = np.diff(np.concatenate([[0], mask.T.ravel().astype(np.int8), [0]]))
        pairs = np.stack([np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)], axis=1)
        runs.append(torch.from_numpy(pairs))
    coded = RunLengthMasks(masks[0].shape, runs)
    return Instances(
        coded.size,
        pred_masks=coded,
        pred_boxes=coded.boxes(),
        scores=torch.tensor(scores),
        pred_classes=torch.tensor(labels),
    )


def seen(place, *found, size=SIZE):
    """The pieces of what is (mask of the image, score, class) that a tile sees."""
    rows, columns = place
    masks = [mask[rows.start : rows.stop, columns.start : columns.stop] for mask, _, _ in found]
    scores, labels = [score for _, score, _ in found], [label for _, _, label in found]
    return list(pieces_of(instances(masks, scores, labels), place, size))


def merged(pieces, size=SIZE):
    return as_instances(merge(pieces, size), size)


def test_an_object_across_a_border_is_one_instance():
    bar = box(20, 10, 100, 30)
    result = merged([*seen(LEFT, (bar, 0.7, 2)), *seen(RIGHT, (bar, 0.9, 2))])
    assert len(result) == 1
    assert np.array_equal(result.pred_masks.dense()[0].numpy(), bar)
    assert result.pred_boxes.tolist() == [[20, 10, 100, 30]]
    assert result.scores.tolist() == pytest.approx([0.9])
    assert result.pred_classes.tolist() == [2]


def test_a_cut_object_gives_way_to_the_neighbors_whole_one():
    """Also if the cut one has the better score and an outline of its own."""
    cut, whole = box(50, 10, 80, 32), box(50, 10, 80, 30)
    result = merged([*seen(LEFT, (cut, 0.9, 0)), *seen(RIGHT, (whole, 0.8, 0))])
    assert len(result) == 1
    assert np.array_equal(result.pred_masks.dense()[0].numpy(), whole)
    assert result.scores.tolist() == pytest.approx([0.9])


def test_of_two_whole_views_the_better_one_stays():
    first, second = box(50, 10, 60, 30), box(50, 10, 61, 31)
    result = merged([*seen(LEFT, (first, 0.8, 0)), *seen(RIGHT, (second, 0.9, 0))])
    assert [mask.sum() for mask in result.pred_masks] == [second.sum()]


def test_a_doubtful_piece_changes_no_mask():
    sure, doubtful = box(40, 10, 64, 30), box(48, 10, 100, 34)
    pieces = [*seen(LEFT, (sure, 0.9, 0)), *seen(RIGHT, (doubtful, 0.1, 0))]
    result = merged(pieces)
    assert len(result) == 1
    assert np.array_equal(result.pred_masks.dense()[0].numpy(), sure)


def test_other_classes_and_objects_of_one_tile_stay_apart():
    bar = box(20, 10, 100, 30)
    assert len(merged([*seen(LEFT, (bar, 0.7, 2)), *seen(RIGHT, (bar, 0.9, 1))])) == 2
    assert len(merged(seen(LEFT, (bar, 0.7, 2), (bar, 0.6, 2)))) == 2
    pairs = [*seen(LEFT, (bar, 0.9, 2), (bar, 0.3, 2)), *seen(RIGHT, (bar, 0.8, 2), (bar, 0.2, 2))]
    assert merged(pairs).scores.tolist() == pytest.approx([0.9, 0.3])


def test_objects_side_by_side_stay_apart():
    """They do not meet where both tiles look, or hardly."""
    left, right = box(30, 10, 53, 30), box(52, 10, 90, 30)
    result = merged([*seen(LEFT, (left, 0.9, 0)), *seen(RIGHT, (right, 0.8, 0))])
    assert len(result) == 2


def test_an_object_larger_than_a_tile_comes_from_the_whole_image():
    size = (100, 200)
    grid = make_grid(size, 64, 0.25)
    large, small = box(5, 5, 190, 95, size), box(10, 10, 20, 20, size)
    whole = Tile(range(100), range(200))
    candidates = seen(whole, (large, 0.9, 0), (small, 0.9, 0), size=size)
    assert [piece.box for piece in larger_than_tiles(candidates, grid)] == [(5, 5, 190, 95)]
    parts = [
        piece
        for row in range(len(grid.rows.starts))
        for column in range(len(grid.columns.starts))
        for piece in seen(grid.tile(row, column), (large, 0.8, 0), size=size)
    ]
    result = merged([*parts, *larger_than_tiles(candidates, grid)], size)
    assert len(result) == 1
    assert np.array_equal(result.pred_masks.dense()[0].numpy(), large)


def test_an_object_fits_at_the_images_border_but_not_at_a_tiles():
    at_image_border, at_tile_border = box(0, 0, 30, 64), box(30, 0, 64, 20)
    candidates = seen(WHOLE, (at_image_border, 0.9, 0), (at_tile_border, 0.9, 0))
    assert not list(larger_than_tiles(candidates[:1], GRID))
    assert list(larger_than_tiles(candidates[1:], GRID)) == candidates[1:]


def test_nothing():
    result = merged([])
    assert len(result) == 0 and result.pred_boxes.shape == (0, 4) and result.pred_masks.shape == (0, *SIZE)


def inside(place, size):
    region = np.zeros(size, bool)
    region[place.rows.start : place.rows.stop, place.columns.start : place.columns.stop] = True
    return region


def cuts_of(mask, place, size):
    """The inner borders of its tile that a mask reaches: axis, direction, and position of the last pixel."""
    region = np.pad(inside(place, size), 1)
    image = np.pad(np.ones(size, bool), 1)
    found = set()
    for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
        beyond = np.roll(region, step, axis) & ~region & image
        border = (np.roll(beyond, -step, axis) & region)[1:-1, 1:-1]
        if (border & mask).any():
            found.add((axis, step, int(np.argwhere(border)[0][axis])))
    return found


def is_open(mask, cuts):
    """Whether a mask ends at a border that cuts one of its pieces."""
    lines = [np.flatnonzero(mask.any(1 - axis)) for axis in (0, 1)]
    return any(lines[axis][-1 if step > 0 else 0] == position for axis, step, position in cuts)


def common_share(first, second, size):
    (mask, place, cuts), (other, other_place, other_cuts) = first, second
    if not (cuts and other_cuts):
        return (mask & other).sum() / min(mask.sum(), other.sum())
    both = inside(place, size) & inside(other_place, size)
    return (mask & other & both).sum() / max(((mask | other) & both).sum(), 1)


def slow_merge(pieces, size):
    """The rules on dense masks: (mask, score, class) of each object, in order."""
    objects = []
    for piece in sorted(pieces, key=lambda piece: -piece.score):
        flat = np.zeros(size[0] * size[1], bool)
        for first, last in piece.runs:
            flat[first:last] = True
        mask = flat.reshape(size[::-1]).T
        view = mask, piece.place, cuts_of(mask, piece.place, size)
        shares = [
            max(common_share(view, other, size) for other in item["views"])
            if item["label"] == piece.label and all(other[1] != piece.place for other in item["views"])
            else 0
            for item in objects
        ]
        if max(shares, default=0) <= 0.5:
            item = {"mask": mask, "score": piece.score, "label": piece.label, "cuts": view[2]}
            objects.append({**item, "views": [view]})
            continue
        owner = objects[int(np.argmax(shares))]
        owner["views"].append(view)
        if is_open(owner["mask"], owner["cuts"]) and piece.score >= 0.5 * owner["score"]:
            owner["mask"] = owner["mask"] | mask if view[2] else mask
            owner["cuts"] = owner["cuts"] | view[2] if view[2] else set()
    return [(item["mask"], item["score"], item["label"]) for item in objects]


@pytest.mark.parametrize("seed", range(8))
def test_merging_equals_a_slow_version_on_dense_masks(seed):
    rng, size = np.random.default_rng(seed), (40, 60)
    grid = make_grid(size, 24, 0.25)
    objects = []
    for _ in range(6):
        top, left = rng.integers(0, 34), rng.integers(0, 50)
        objects.append(box(left, top, left + rng.integers(3, 40), top + rng.integers(3, 30), size))
    pieces = []
    rows, columns = (range(len(axis.starts)) for axis in grid)
    tiles = [grid.tile(row, column) for row in rows for column in columns]
    for place in [*tiles, Tile(range(40), range(60))]:
        found = []
        for mask in objects:
            noisy = np.roll(mask, rng.integers(-2, 3, 2), (0, 1))
            found.append((noisy, float(rng.uniform(0.1, 1)), int(rng.integers(2))))
        pieces += seen(place, *found, size=size)
    result = merged(pieces, size)
    expected = slow_merge(pieces, size)
    assert len(result) == len(expected) and len(result) < len(pieces)
    for (mask, score, label), found in zip(expected, result, strict=True):
        assert found.scores.item() == pytest.approx(score)
        assert found.pred_classes.item() == label
        assert np.array_equal(found.pred_masks.dense()[0].numpy(), mask)
        assert found.pred_boxes.tolist() == found.pred_masks.boxes().tolist()
