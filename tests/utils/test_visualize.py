"""Overlays: pixels, stable colors, and labels that are legible at any size."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from mask2former.structures import Instances, RunLengthMasks, runs
from mask2former.utils import visualize
from mask2former.utils.visualize import (
    Region,
    class_colors,
    draw_regions,
    enlarged,
    instance_regions,
    label_shapes,
    legible_scale,
    mask_shape,
    panoptic_regions,
    run_length_shapes,
    semantic_regions,
    shade,
    shape_regions,
)

NAMES = ["cat", "dog", "sky"]
COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def square_mask(side, top, left, size):
    mask = np.zeros((side, side), bool)
    mask[top : top + size, left : left + size] = True
    return mask


def whole(shape, image):
    """Return the mask of a shape over all of an image (H, W, ...)."""
    return shape.inside((0, 0, image.shape[1], image.shape[0]))


@pytest.fixture
def texts(monkeypatch):
    """Record the labels, as (text, font size, middle)."""
    written = []
    original = visualize._write_label

    def write(canvas, box, text, color, letter):
        left, top, right, bottom = box
        written.append((text, letter, ((left + right) / 2, (top + bottom) / 2)))
        original(canvas, box, text, color, letter)

    monkeypatch.setattr(visualize, "_write_label", write)
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
    assert [region.shape.area for region in regions] == [16, 9, 4]  # small ones come last, on top
    assert [region.text for region in regions] == ["dog 70%", "cat 80%", "cat 90%"]
    assert [region.color for region in regions] == [(0, 255, 0), shade((255, 0, 0), 1), (255, 0, 0)]
    assert len({shade((200, 100, 50), number) for number in range(5)}) == 5


def test_semantic_and_panoptic_regions():
    labels = np.array([[0, 0], [2, 255]])
    regions = semantic_regions(labels, NAMES, COLORS)
    found = [(region.text, region.color, region.shape.area) for region in regions]
    assert found == [("cat", COLORS[0], 2), ("sky", COLORS[2], 1)]
    ids = np.array([[1, 0], [2, 2]])
    segments = [{"id": 1, "category_id": 1}, {"id": 2, "category_id": 1}]
    first, second = panoptic_regions(ids, segments, NAMES, COLORS)
    assert (whole(first.shape, ids) == (ids == 1)).all() and (whole(second.shape, ids) == (ids == 2)).all()
    assert (first.color, second.color) == (COLORS[1], shade(COLORS[1], 1))


def test_masks_become_regions_largest_first():
    masks = [square_mask(8, 0, 0, 2), square_mask(8, 0, 0, 4), square_mask(8, 4, 4, 3)]
    regions = shape_regions(map(mask_shape, masks), [2, 0, 2], NAMES, COLORS)
    assert [(region.text, region.shape.area) for region in regions] == [("cat", 16), ("sky", 9), ("sky", 4)]
    assert [region.color for region in regions] == [COLORS[0], shade(COLORS[2], 1), COLORS[2]]


@pytest.mark.parametrize(("side", "scale"), [(128, 4), (300, 1), (256, 2), (4000, 1)])
def test_tiny_images_are_enlarged_to_be_legible(side, scale):
    assert legible_scale(np.zeros((side, side // 2, 3), np.uint8)) == scale


def test_a_region_is_tinted_and_the_rest_unchanged():
    image = np.full((60, 60, 3), 100, np.uint8)
    mask = square_mask(60, 10, 10, 8)  # smaller than a letter: not named
    overlay = draw_regions(image, [Region(mask_shape(mask), (200, 0, 50), "cat")])
    assert (image == 100).all() and (overlay[~mask] == 100).all()
    assert overlay[14, 14].tolist() == [150, 50, 75]
    assert overlay[10, 10].tolist() == [200, 0, 50]  # the outline is in the full color


def test_without_regions_the_image_is_unchanged():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    np.testing.assert_array_equal(draw_regions(image, []), image)
    empty = Region(mask_shape(np.zeros((20, 30), bool)), (1, 2, 3), "cat")
    np.testing.assert_array_equal(draw_regions(image, [empty]), image)


@pytest.mark.parametrize("side", [128, 512, 4000])
def test_labels_are_legible_and_inside_at_every_size(side, texts):
    mask = square_mask(side, side // 2, side // 4, side // 3)
    draw_regions(np.zeros((side, side, 3), np.uint8), [Region(mask_shape(mask), (255, 255, 255), "cat")])
    ((text, size, (x, y)),) = texts
    assert text == "cat"
    assert max(10, side / 60) <= size <= max(10, side / 30)
    assert mask[int(y), int(x)]


@pytest.mark.parametrize(
    ("name", "shown"), [("a\nb\x1b[31m", r"a\nb\x1b[31m"), ("\ud800", r"\ud800"), ("c" * 5000, "ccc")]
)
def test_names_of_classes_may_be_anything(texts, name, shown):
    mask = square_mask(900, 0, 0, 900)
    draw_regions(np.zeros((900, 900, 3), np.uint8), [Region(mask_shape(mask), (255, 0, 0), name)])
    ((text, _, _),) = texts
    assert text.startswith(shown) and len(text) <= 100


def test_labels_do_not_cover_each_other(texts):
    masks = [square_mask(200, 70, left, 60) for left in (60, 64, 68, 72)]
    regions = [Region(mask_shape(mask), (255, 0, 0), "dog") for mask in masks]
    draw_regions(np.zeros((200, 200, 3), np.uint8), regions)
    rows = sorted(y for _, _, (_, y) in texts)
    assert len(rows) == 4 and min(np.diff(rows)) >= 10


def test_the_label_of_a_ring_is_inside_it(texts):
    ring = square_mask(100, 10, 10, 80) & ~square_mask(100, 30, 30, 50)
    draw_regions(np.zeros((100, 100, 3), np.uint8), [Region(mask_shape(ring), (255, 0, 0), "a")])
    ((_, _, (x, y)),) = texts
    assert ring[int(y), int(x)]


def noisy_labels(height, width):
    """Labels in blocks of 9 x 7 pixels, of which a few are isolated pixels of another label."""
    rng = np.random.default_rng(0)
    blocks = rng.choice([0, 1, 4, 5, 9], (height // 9 + 1, width // 7 + 1)).repeat(9, 0).repeat(7, 1)
    labels = blocks[:height, :width].astype(np.int32)
    labels[rng.random(labels.shape) < 0.01] = 3
    return labels


@pytest.fixture
def strips(monkeypatch):
    """Make strips of a few rows, so that small images have several."""
    monkeypatch.setattr(visualize, "STRIP_PIXELS", 200)


def test_shapes_of_labels_runs_and_masks_are_the_same(strips):
    labels = noisy_labels(70, 50)
    values = [0, 1, 2, 3, 4, 9]
    coded = []
    for value in values:
        flat = (labels == value).T.ravel()
        coded.append(torch.from_numpy(runs(flat)[flat[runs(flat)[:, 0]]]))
    by_kind = (
        label_shapes(labels, values),
        run_length_shapes(RunLengthMasks(labels.shape, coded)),
        [mask_shape(labels == value) for value in values],
    )
    for value, shapes in zip(values, zip(*by_kind, strict=True), strict=True):
        mask = labels == value
        for shape in shapes:
            assert shape.area == mask.sum() and shape.box == shapes[2].box
            assert (shape.box is None) == (value == 2)
            for box in ((0, 0, 50, 70), (11, 20, 31, 64), (45, 60, 55, 75), (3, 4, 4, 5)):
                left, top, right, bottom = box
                np.testing.assert_array_equal(shape.inside(box), mask[top:bottom, left:right])


def test_an_enlarged_shape_repeats_the_pixels():
    mask = square_mask(9, 2, 3, 4) & ~square_mask(9, 3, 4, 1)
    shape, expected = enlarged(mask_shape(mask), 3), mask.repeat(3, 0).repeat(3, 1)
    assert shape.area == expected.sum() and shape.box == mask_shape(expected).box
    np.testing.assert_array_equal(whole(shape, expected), expected)
    np.testing.assert_array_equal(shape.inside((10, 7, 20, 27)), expected[7:27, 10:20])


def plain_overlay(image, masks, colors, texts):
    """Draw masks, the largest first, in the plain way: floats, full-size masks, labels on the whole image."""
    canvas, letter = image.copy(), max(10, round((image.shape[0] * image.shape[1]) ** 0.5 / 45))
    for mask, color in zip(masks, colors, strict=True):
        canvas[mask] = (canvas[mask] * 0.5 + np.array(color) * 0.5).astype(np.uint8)
    for mask, color in zip(masks, colors, strict=True):
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, contours, -1, color, max(1, letter // 8))
    drawn = Image.fromarray(canvas)
    draw, font = ImageDraw.Draw(drawn), ImageFont.load_default(size=letter)
    for (left, top, right, bottom), text, color in texts:
        draw.rounded_rectangle((left, top, right - 1, bottom - 1), letter // 4, fill=color)
        middle = ((left + right) / 2, (top + bottom) / 2)
        ink = (0, 0, 0) if np.dot((0.299, 0.587, 0.114), color) > 140 else (255, 255, 255)
        draw.text(middle, text, fill=ink, font=font, anchor="mm")
    return np.asarray(drawn)


def test_drawing_in_strips_gives_the_pixels_of_the_plain_way(strips, monkeypatch):
    image = np.random.default_rng(1).integers(0, 256, (400, 601, 3), dtype=np.uint8)
    labels = noisy_labels(400, 601)
    labels[250:, :300] = 1
    labels[:120, 400:] = 4
    labels[5:60, :77] = 9
    texts, write = [], visualize._write_label
    monkeypatch.setattr(
        visualize,
        "_write_label",
        lambda canvas, box, text, color, letter: (
            texts.append((box, text, color)),
            write(canvas, box, text, color, letter),
        ),
    )
    regions = semantic_regions(labels, list("abcdefghij"), class_colors(10))
    drawn = draw_regions(image, regions)
    masks = [labels == k for k in (0, 1, 3, 4, 5, 9)]
    assert len(texts) >= 3
    np.testing.assert_array_equal(
        drawn, plain_overlay(image, masks, [region.color for region in regions], texts)
    )
