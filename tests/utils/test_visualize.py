"""Overlays: pixels, stable colors, and labels that are legible at any size."""

import numpy as np
import pytest
import torch
from PIL import ImageDraw

from mask2former.structures import Instances
from mask2former.utils.visualize import (
    Region,
    class_colors,
    draw_regions,
    instance_regions,
    legible_scale,
    mask_regions,
    panoptic_regions,
    semantic_regions,
    shade,
)

NAMES = ["cat", "dog", "sky"]
COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def square_mask(side, top, left, size):
    mask = np.zeros((side, side), bool)
    mask[top : top + size, left : left + size] = True
    return mask


@pytest.fixture
def texts(monkeypatch):
    """Record the labels, as (text, font size, xy)."""
    written = []
    original = ImageDraw.ImageDraw.text

    def text(self, xy, text, **options):
        written.append((text, options["font"].size, xy))
        return original(self, xy, text, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return written


def test_class_colors_do_not_depend_on_their_number_and_differ():
    many = class_colors(200)
    assert class_colors(7) == many[:7]
    assert len(set(many)) == 200
    distances = np.abs(np.diff(np.array(many), axis=0)).sum(1)
    assert distances.min() > 60


def test_instances_of_a_class_are_shades_of_its_color():
    masks = np.stack([square_mask(8, 0, 0, 2), square_mask(8, 4, 4, 3), square_mask(8, 0, 4, 4)])
    fields = {"pred_classes": torch.tensor([0, 0, 1]), "scores": torch.tensor([0.9, 0.8, 0.7])}
    instances = Instances((8, 8), pred_masks=torch.from_numpy(masks), **fields)
    regions = instance_regions(instances, NAMES, COLORS)
    assert [region.mask.sum() for region in regions] == [16, 9, 4]  # small ones come last, on top
    assert [region.text for region in regions] == ["dog 70%", "cat 80%", "cat 90%"]
    assert [region.color for region in regions] == [(0, 255, 0), shade((255, 0, 0), 1), (255, 0, 0)]
    assert len({shade((200, 100, 50), number) for number in range(5)}) == 5


def test_semantic_and_panoptic_regions():
    labels = np.array([[0, 0], [2, 255]])
    regions = semantic_regions(labels, NAMES, COLORS)
    found = [(region.text, region.color, region.mask.sum()) for region in regions]
    assert found == [("cat", COLORS[0], 2), ("sky", COLORS[2], 1)]
    ids = np.array([[1, 0], [2, 2]])
    segments = [{"id": 1, "category_id": 1}, {"id": 2, "category_id": 1}]
    first, second = panoptic_regions(ids, segments, NAMES, COLORS)
    assert (first.mask == (ids == 1)).all() and (second.mask == (ids == 2)).all()
    assert (first.color, second.color) == (COLORS[1], shade(COLORS[1], 1))


def test_masks_become_regions_largest_first():
    masks = [square_mask(8, 0, 0, 2), square_mask(8, 0, 0, 4), square_mask(8, 4, 4, 3)]
    regions = mask_regions(iter(masks), [2, 0, 2], NAMES, COLORS)
    assert [(region.text, region.mask.sum()) for region in regions] == [("cat", 16), ("sky", 9), ("sky", 4)]
    assert [region.color for region in regions] == [COLORS[0], shade(COLORS[2], 1), COLORS[2]]


@pytest.mark.parametrize(("side", "scale"), [(128, 4), (300, 1), (256, 2), (4000, 1)])
def test_tiny_images_are_enlarged_to_be_legible(side, scale):
    assert legible_scale(np.zeros((side, side // 2, 3), np.uint8)) == scale


def test_a_region_is_tinted_and_the_rest_unchanged():
    image = np.full((60, 60, 3), 100, np.uint8)
    mask = square_mask(60, 10, 10, 8)  # smaller than a letter: not named
    overlay = draw_regions(image, [Region(mask, (200, 0, 50), "cat")])
    assert (image == 100).all() and (overlay[~mask] == 100).all()
    assert overlay[14, 14].tolist() == [150, 50, 75]
    assert overlay[10, 10].tolist() == [200, 0, 50]  # the outline is in the full color


def test_without_regions_the_image_is_unchanged():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    np.testing.assert_array_equal(draw_regions(image, []), image)
    empty = Region(np.zeros((20, 30), bool), (1, 2, 3), "cat")
    np.testing.assert_array_equal(draw_regions(image, [empty]), image)


@pytest.mark.parametrize("side", [128, 512, 4000])
def test_labels_are_legible_and_inside_at_every_size(side, texts):
    mask = square_mask(side, side // 2, side // 4, side // 3)
    draw_regions(np.zeros((side, side, 3), np.uint8), [Region(mask, (255, 255, 255), "cat")])
    ((text, size, (x, y)),) = texts
    assert text == "cat"
    assert max(10, side / 60) <= size <= max(10, side / 30)
    assert mask[int(y), int(x)]


def test_labels_do_not_cover_each_other(texts):
    masks = [square_mask(200, 70, left, 60) for left in (60, 64, 68, 72)]
    draw_regions(np.zeros((200, 200, 3), np.uint8), [Region(mask, (255, 0, 0), "dog") for mask in masks])
    rows = sorted(y for _, _, (_, y) in texts)
    assert len(rows) == 4 and min(np.diff(rows)) >= 10


def test_the_label_of_a_ring_is_inside_it(texts):
    ring = square_mask(100, 10, 10, 80) & ~square_mask(100, 30, 30, 50)
    draw_regions(np.zeros((100, 100, 3), np.uint8), [Region(ring, (255, 0, 0), "a")])
    ((_, _, (x, y)),) = texts
    assert ring[int(y), int(x)]
