"""Overlays: tinted pixels, and outlines that show on any background."""

import weakref

import cv2
import numpy as np
import pytest
from noisy_labels import noisy_labels

from mask2former.drawing import labels, shapes
from mask2former.drawing.colors import WHITE, casing, class_colors, contrast
from mask2former.drawing.overlay import draw_regions, legible_scale
from mask2former.drawing.regions import Region, semantic_regions
from mask2former.drawing.shapes import Shape, mask_shape


def disk(side, radius):
    y, x = np.ogrid[:side, :side]
    return (y - side / 2) ** 2 + (x - side / 2) ** 2 < radius**2


def region(mask, color=(200, 0, 50), name="cat"):
    return Region(mask_shape(mask), color, 0, name)


@pytest.fixture
def no_labels(monkeypatch):
    monkeypatch.setattr(labels, "place_labels", lambda size, regions: [])


@pytest.mark.parametrize(("side", "scale"), [(128, 4), (300, 1), (256, 2), (4000, 1)])
def test_tiny_images_are_enlarged_to_be_legible(side, scale):
    assert legible_scale(np.zeros((side, side // 2, 3), np.uint8)) == scale


def test_a_region_is_tinted_and_outlined_and_the_rest_unchanged():
    image = np.full((60, 60, 3), 100, np.uint8)
    mask = np.zeros((60, 60), bool)
    mask[10:15, 10:15] = True  # too small for a label
    overlay = draw_regions(image, [region(mask)])
    near = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    assert (image == 100).all() and (overlay[~near] == 100).all()
    assert overlay[12, 12].tolist() == [150, 50, 75]
    assert overlay[10, 10].tolist() == overlay[14, 12].tolist() == [200, 0, 50]
    assert (overlay[near & ~mask] == casing((200, 0, 50))).all()


def test_without_regions_the_image_is_unchanged():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    np.testing.assert_array_equal(draw_regions(image, []), image)
    np.testing.assert_array_equal(draw_regions(image, [region(np.zeros((20, 30), bool))]), image)


BACKGROUNDS = {
    "black": lambda shape: np.zeros(shape, np.uint8),
    "white": lambda shape: np.full(shape, 255, np.uint8),
    "gray": lambda shape: np.full(shape, 128, np.uint8),
    "texture": lambda shape: np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8),
    "stripes": lambda shape: np.where(np.indices(shape)[1] // 3 % 2, 255, 0).astype(np.uint8),
}
TEXTURED = ("texture", "stripes")  # whose pixels may happen to have the colors of the lines


@pytest.mark.parametrize("side", [256, 900])
@pytest.mark.parametrize("color", [(0, 0, 142), (255, 255, 0), (128, 128, 128), (0, 0, 0), WHITE], ids=str)
@pytest.mark.parametrize("background", BACKGROUNDS)
def test_an_outline_shows_on_any_background(no_labels, background, color, side):
    """All around a disk, a pixel of one of the lines at its edge contrasts with the pixel that was there."""
    image = BACKGROUNDS[background]((side, side, 3))
    drawn = draw_regions(image, [region(disk(side, side / 3), color)])
    shown = 0
    for angle in np.linspace(0, 2 * np.pi, 100):
        reach = np.arange(side / 3 - 14, side / 3 + 14)
        y, x = (np.floor(side / 2 + reach * f(angle)).astype(int) for f in (np.sin, np.cos))
        pairs = zip(map(tuple, drawn[y, x].tolist()), map(tuple, image[y, x].tolist()), strict=True)
        lines = [contrast(pixel, before) for pixel, before in pairs if pixel in (color, casing(color))]
        shown += max(lines) > 1.7
    assert shown >= (85 if background in TEXTURED else 100)


def test_an_outline_is_the_wider_the_larger_the_image(no_labels):
    widths = {}
    for side in (256, 1000, 4000):
        image = np.full((side, side, 3), 100, np.uint8)
        drawn = draw_regions(image, [region(disk(side, side / 3), (255, 0, 0))])
        widths[side] = int((drawn[side // 2, : side // 2] == (255, 0, 0)).all(1).sum())
    assert widths == {256: 1, 1000: 3, 4000: 13}


def test_the_outline_of_a_small_object_leaves_its_middle_free(no_labels):
    mask = np.zeros((3000, 3000), bool)
    mask[500:540, 500:540] = True
    drawn = draw_regions(np.full((3000, 3000, 3), 100, np.uint8), [region(mask)])
    assert (drawn[500:540, 500:540] == (150, 50, 75)).all(2).mean() > 0.5


def distances(mask):
    """Return each pixel's distance to the nearest outside of the mask, which goes on beyond the image."""
    padded = np.pad(mask, 1, constant_values=True).astype(np.uint8)
    return cv2.distanceTransform(padded, cv2.DIST_C, 3)[1:-1, 1:-1]


def plain_overlay(image, masks, colors, line):
    """Draw masks in the plain way: floats, full-size masks, distances to the edge."""
    canvas = image.copy()
    for mask, color in zip(masks, colors, strict=True):
        canvas[mask] = (canvas[mask] * 0.5 + np.array(color) * 0.5).astype(np.uint8)
    for mask, color in zip(masks, colors, strict=True):
        width = max(1, round(min(line, mask.sum() ** 0.5 / 10)))
        inside, outside = distances(mask), distances(~mask)
        canvas[(outside > 0) & (outside <= max(1, width // 2))] = casing(color)
        canvas[mask & (inside <= width)] = color
    return canvas


def test_drawing_in_strips_gives_the_pixels_of_the_plain_way(no_labels, monkeypatch):
    monkeypatch.setattr(shapes, "STRIP_PIXELS", 20_000)
    image = np.random.default_rng(1).integers(0, 256, (400, 801, 3), dtype=np.uint8)
    labels_map = noisy_labels(400, 801)
    labels_map[250:, :300] = 1
    labels_map[:120, 400:] = 4
    labels_map[5:60, :77] = 9
    regions = semantic_regions(labels_map, list("abcdefghij"), class_colors(10))
    masks = [labels_map == k for k in (0, 1, 3, 4, 5, 9)]
    expected = plain_overlay(image, masks, [region.color for region in regions], (400 * 801) ** 0.5 / 300)
    np.testing.assert_array_equal(draw_regions(image, regions), expected)


def test_enlarged_drawings_have_fine_lines():
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    mask = np.zeros((50, 60), bool)
    mask[10:40, 10:40] = True
    large = draw_regions(image.repeat(4, 0).repeat(4, 1), [region(mask.repeat(4, 0).repeat(4, 1))])
    np.testing.assert_array_equal(draw_regions(image, [region(mask)], scale=4), large)


def test_drawing_twice_gives_the_same_pixels():
    labels_map = noisy_labels(90, 120)
    regions = semantic_regions(labels_map, list("abcdefghij"), class_colors(10))
    image = np.zeros((90, 120, 3), np.uint8)
    np.testing.assert_array_equal(draw_regions(image, regions), draw_regions(image, regions))


def test_the_masks_of_objects_are_in_memory_one_after_the_other():
    alive, most = set(), []

    def inside(box):
        mask = np.ones((box[3] - box[1], box[2] - box[0]), bool)
        alive.add(id(mask))
        weakref.finalize(mask, alive.discard, id(mask))
        most.append(len(alive))
        return mask

    objects = [Region(Shape((0, 0, 90, 70), 70 * 90, inside), (k, 0, 0), 0, "cat") for k in range(20)]
    draw_regions(np.zeros((70, 90, 3), np.uint8), objects)
    assert len(most) >= 20 and max(most) <= 2
