"""Regions of the results of each task: their colors, shades and labels."""

import numpy as np
import pytest
import torch

from mask2former.drawing.colors import instance_color
from mask2former.drawing.regions import (
    instance_regions,
    neighbor_numbers,
    panoptic_regions,
    result_regions,
    semantic_regions,
    shape_regions,
)
from mask2former.drawing.shapes import mask_shape
from mask2former.structures import Instances

NAMES = ["cat", "dog", "sky"]
COLORS = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]


def square(side, top, left, size):
    mask = np.zeros((side, side), bool)
    mask[top : top + size, left : left + size] = True
    return mask


def instances():
    masks = np.stack([square(8, 0, 0, 2), square(8, 4, 4, 3), square(8, 0, 4, 4)])
    fields = {"pred_classes": torch.tensor([0, 0, 1]), "scores": torch.tensor([0.9, 0.8, 0.7])}
    return Instances((8, 8), pred_masks=torch.from_numpy(masks), **fields)


def test_instances_of_a_class_are_shades_of_its_color():
    regions = instance_regions(instances(), NAMES, COLORS)
    assert [region.shape.area for region in regions] == [16, 9, 4]  # small ones come last, on top
    assert [(region.name, region.note) for region in regions] == [
        ("dog", "70%"),
        ("cat", "80%"),
        ("cat", "90%"),
    ]
    assert [region.color for region in regions] == [COLORS[1], instance_color(COLORS[0], 1), COLORS[0]]


def test_semantic_and_panoptic_regions():
    labels = np.array([[0, 0], [2, 255]])
    regions = semantic_regions(labels, NAMES, COLORS)
    found = [(region.name, region.color, region.class_id, region.shape.area) for region in regions]
    assert found == [("cat", COLORS[0], 0, 2), ("sky", COLORS[2], 2, 1)]
    ids = np.array([[1, 0], [2, 2]])
    segments = [{"id": 1, "category_id": 1}, {"id": 2, "category_id": 1}]
    first, second = panoptic_regions(ids, segments, NAMES, COLORS)
    for region, number in ((first, 1), (second, 2)):
        np.testing.assert_array_equal(region.shape.inside((0, 0, 2, 2)), ids == number)
    assert (first.color, second.color) == (COLORS[1], instance_color(COLORS[1], 1))


def test_a_class_has_one_base_color_in_all_tasks():
    labels = np.array([[0, 1], [2, 2]])
    segments = [{"id": k, "category_id": k} for k in range(3)]
    masks = torch.stack([torch.from_numpy(labels == k) for k in range(3)])
    found = Instances((2, 2), pred_masks=masks, pred_classes=torch.arange(3), scores=torch.ones(3))
    for task, result in {"semantic": labels, "panoptic": (labels, segments), "instance": found}.items():
        regions = result_regions(task, result, NAMES, COLORS)
        assert {region.class_id: region.color for region in regions} == dict(enumerate(COLORS))


def test_masks_become_regions_largest_first():
    masks = [square(8, 0, 0, 2), square(8, 0, 0, 4), square(8, 4, 4, 3)]
    regions = shape_regions([*map(mask_shape, masks)], [2, 0, 2], NAMES, COLORS)
    assert [(region.name, region.shape.area) for region in regions] == [("cat", 16), ("sky", 9), ("sky", 4)]
    assert [region.color for region in regions] == [COLORS[0], instance_color(COLORS[2], 1), COLORS[2]]


def test_an_id_gives_the_shade_and_is_in_the_label():
    regions = instance_regions(instances(), NAMES, COLORS, ids=[12, None, 3])
    by_note = {region.note: region for region in regions}
    assert [by_note[note].mark for note in ("90%", "80%", "70%")] == ["#12", "", "#3"]
    assert by_note["90%"].color == instance_color(COLORS[0], 12)
    assert by_note["80%"].color == COLORS[0]
    segments = [{"id": 1, "category_id": 0}, {"id": 2, "category_id": 2}]
    car, sky = panoptic_regions(np.array([[1, 2]]), segments, NAMES, COLORS, ids=[12, None])
    assert car.color == by_note["90%"].color and (sky.mark, sky.color) == ("", COLORS[2])


@pytest.mark.parametrize(
    ("task", "message"),
    [("instance", "there are 3 objects to draw, and 2 ids"), ("semantic", "has classes alone")],
)
def test_ids_that_do_not_fit_are_an_error(task, message):
    result = instances() if task == "instance" else np.zeros((2, 2), int)
    with pytest.raises(ValueError, match=message):
        result_regions(task, result, NAMES, COLORS, ids=[1, 2])


def test_neighbors_of_a_class_have_different_shades():
    """In a grid of 144 objects, which have eight shades, no two that touch share one."""
    shapes = [mask_shape(square(120, 10 * y, 10 * x, 10)) for y in range(12) for x in range(12)]
    order = np.random.default_rng(0).permutation(144)
    numbers = np.empty(144, int)
    numbers[order] = neighbor_numbers([shapes[i] for i in order], [0] * 144)
    grid = numbers.reshape(12, 12)
    assert (grid[1:] != grid[:-1]).all() and (grid[:, 1:] != grid[:, :-1]).all()
    assert neighbor_numbers(shapes[:3], [0, 1, 0]) == [0, 0, 1]  # a class of its own


def test_an_empty_mask_has_no_neighbors():
    empty = mask_shape(np.zeros((4, 4), bool))
    assert neighbor_numbers([empty, empty, mask_shape(square(4, 0, 0, 2))], [0, 0, 0]) == [0, 0, 0]
