"""Augmentation against Pillow, against masks transformed step by step, and against hand-made cases."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scenes_by_hand import by_hand, empty_scene, scene_of
from synthetic_coco import all_masks, rectangle
from transform_chains import SIDES as sides
from transform_chains import transform_chains

from mask2former.data import augmentation as aug
from mask2former.data.augmentation import FastResize, Pad, Resize, augment
from mask2former.utils.label_maps import nearest_pixels

seeds = st.integers(0, 2**32 - 1)


@given(sides, st.integers(1, 90))
def test_nearest_pixels_equal_those_of_pillow_on_both_axes(size, new_size):
    line = np.random.default_rng(size).integers(0, 256, size).astype(np.uint8)
    across, down = Image.fromarray(np.stack([line] * 3)), Image.fromarray(np.stack([line] * 3, axis=1))
    rows = np.asarray(across.resize((new_size, 3), Image.Resampling.NEAREST))
    columns = np.asarray(down.resize((3, new_size), Image.Resampling.NEAREST))
    for expected in (rows[0], columns[:, 0]):
        np.testing.assert_array_equal(line[nearest_pixels(size, new_size)], expected)


@given(sides, sides, sides, sides)
def test_resizing_equals_pillow(height, width, new_height, new_width):
    image = empty_scene(height, width).image
    expected = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(Resize(new_height, new_width).apply_image(image), np.asarray(expected))


def difference_from_pillow(size, new_size):
    image = empty_scene(*size).image
    expected = Image.fromarray(image).resize(new_size[::-1], Image.Resampling.BILINEAR)
    resized = FastResize(*new_size).apply_image(image)
    assert resized.shape == (*new_size, 3)
    return np.abs(resized.astype(int) - np.asarray(expected))


@settings(max_examples=200)
@given(st.tuples(sides, sides), st.tuples(sides, sides))
def test_fast_resizing_differs_from_pillow_by_at_most_two(size, new_size):
    """Both round after each axis: one value in 10^8 differs by two."""
    assert difference_from_pillow(size, new_size).max() <= 2


@pytest.mark.parametrize("new_size", [(60, 90), (320, 480), (960, 1440)])
def test_fast_resizing_differs_from_pillow_in_few_values(new_size):
    assert difference_from_pillow((320, 480), new_size).mean() < 0.02


@settings(max_examples=150)
@given(transform_chains(), seeds)
def test_one_geometry_equals_transforming_masks_step_by_step(chain, seed):
    size, steps = chain
    masks = np.random.default_rng(seed).random((2, *size)) < 0.5
    scene = scene_of(masks)
    result = augment(scene, [lambda scene, rng, step=step: step for step in steps], np.random.default_rng(0))
    image, expected = scene.image, masks.astype(np.uint8)
    for step in steps:
        image = by_hand(step, image, nearest=False)
        expected = np.stack([by_hand(step, mask, nearest=True) for mask in expected])
    np.testing.assert_array_equal(result.image, image)
    np.testing.assert_array_equal(all_masks(result.ground_truth, result.geometry), expected.astype(bool))


def test_scale_is_one_number_in_the_range():
    scene = empty_scene(50, 100)
    scale = partial(aug.random_scale, scene, size=200, min_scale=0.5, max_scale=1.5)
    heights, widths = np.array([scale(np.random.default_rng(seed)) for seed in range(200)]).T
    assert 100 <= widths.min() < 110
    assert 290 < widths.max() <= 300
    assert (abs(heights - widths / 2) <= 0.75).all()


def test_one_number_sets_the_position_of_the_window():
    places = [aug.random_window(empty_scene(30, 50), np.random.default_rng(s), size=20) for s in range(100)]
    tops, lefts = np.array([(p.top, p.left) for p in places]).T
    assert {(p.height, p.width) for p in places} == {(20, 20)}
    assert (tops.min(), tops.max(), lefts.min(), lefts.max()) == (0, 10, 0, 30)
    assert (abs(tops / 10 - lefts / 30) < 0.07).all()


@pytest.mark.parametrize(
    ("size", "edge", "max_size", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1067)),
        ((640, 480), 800, 1333, (1067, 800)),
        ((333, 1000), 800, 1333, (444, 1333)),
        ((1000, 333), 800, 1333, (1333, 444)),
        ((500, 500), 800, 1333, (800, 800)),
        ((500, 500), 800, 600, (600, 600)),
        ((427, 640), 0, 1333, (427, 640)),
        ((427, 640), 427, 1333, (427, 640)),
        ((1, 5000), 800, 1333, (1, 1333)),
    ],
)
def test_the_shorter_side_is_resized_to_the_edge(size, edge, max_size, expected):
    assert aug.resize_shortest_edge(size, edge, max_size) == Resize(*expected)


def test_edges_are_drawn_from_a_choice_or_a_range():
    scene = empty_scene(10, 20)

    def heights(ranged):
        step = partial(aug.random_shortest_edge, scene, sizes=(4, 9), max_size=99, ranged=ranged)
        return {step(np.random.default_rng(seed)).height for seed in range(60)}

    assert heights(ranged=False) == {4, 9}
    assert heights(ranged=True) == {4, 5, 6, 7, 8, 9}


@pytest.mark.parametrize(
    ("kind", "size", "heights", "widths"),
    [
        ("absolute", (8, 30), {8}, {20}),
        ("absolute_range", (8, 11), {8, 9, 10}, {8, 9, 10, 11}),
        ("relative", (0.5, 0.9), {5}, {18}),
        ("relative_range", (0.5, 0.9), {5, 6, 7, 8, 9, 10}, {18, 19, 20}),
    ],
)
def test_crops_have_the_sizes_of_their_kind_and_any_position(kind, size, heights, widths):
    scene = empty_scene(10, 20)
    crops = [aug.random_crop(scene, np.random.default_rng(s), kind=kind, size=size) for s in range(300)]
    assert {int(c.height) for c in crops} == heights
    assert {int(c.width) for c in crops} == widths
    assert min(c.top for c in crops) == min(c.left for c in crops) == 0
    assert max(c.top + c.height for c in crops) == 10
    assert max(c.left + c.width for c in crops) == 20
    assert all(c.top + c.height <= 10 and c.left + c.width <= 20 for c in crops)


def test_crops_of_mostly_one_category_are_drawn_again():
    """One class is left and one right: only crops over the border are mixed enough."""
    left, right = rectangle((10, 40), 0, 0, 10, 19), rectangle((10, 40), 0, 21, 10, 40)
    scene = scene_of([left, right], classes=[4, 2])

    def share_of_one_sided(limit):
        crop = partial(aug.random_crop, scene, kind="absolute", size=(10, 20), max_category_area=limit)
        crops = [crop(np.random.default_rng(seed)) for seed in range(100)]
        areas = [all_masks(scene.ground_truth, c.apply_geometry(scene.geometry)).sum((1, 2)) for c in crops]
        return np.mean([a.max() >= 0.75 * a.sum() for a in areas])

    assert share_of_one_sided(1.0) > 0.3
    assert share_of_one_sided(0.75) < 0.03


def test_flips_mirror_half_of_the_images():
    axes = [aug.random_flip(empty_scene(2, 2), np.random.default_rng(s), axis=1).axis for s in range(400)]
    assert 150 < axes.count(1) < 250
    assert set(axes) == {None, 1}


def test_padding_never_cuts():
    assert aug.pad_to(empty_scene(30, 50), np.random.default_rng(0), size=40) == Pad(10, 0)


def test_color_operations_change_values_as_specified():
    image = np.array([[[250, 10, 128], [200, 0, 0]]], dtype=np.uint8)
    assert aug.change_brightness(image, 20).tolist() == [[[255, 30, 148], [220, 20, 20]]]
    assert aug.change_brightness(image, -20).tolist() == [[[230, 0, 108], [180, 0, 0]]]
    assert aug.change_contrast(image, 0.5).tolist() == [[[125, 5, 64], [100, 0, 0]]]
    assert aug.change_contrast(image, 1.5)[0, 1].tolist() == [255, 0, 0]
    assert aug.change_saturation(image, 0.0)[0, 1].tolist() == [200, 200, 200]  # gray
    assert aug.change_hue(image, 60)[0, 1].tolist() == [0, 200, 0]  # red turned by 120 degrees
    assert aug.change_hue(image, -60)[0, 1].tolist() == [0, 0, 200]
    for operation, nothing in ((aug.change_brightness, 0), (aug.change_contrast, 1)):
        np.testing.assert_array_equal(operation(image, nothing), image)


def test_color_jitter_draws_each_operation_half_the_time():
    scene = empty_scene(2, 2)
    draws = [aug.random_color(scene, np.random.default_rng(s)).operations for s in range(400)]
    limits = {
        aug.change_brightness: (-32, 32),
        aug.change_contrast: (0.5, 1.5),
        aug.change_saturation: (0.5, 1.5),
        aug.change_hue: (-18, 18),
    }
    for operation, (low, high) in limits.items():
        amounts = [amount for operations in draws for function, amount in operations if function is operation]
        assert 150 < len(amounts) < 250
        assert low <= min(amounts) < low + (high - low) / 20
        assert high - (high - low) / 20 < max(amounts) <= high
    orders = {tuple(function for function, _ in operations) for operations in draws if len(operations) == 4}
    first, contrast, saturation, hue = limits
    assert orders == {(first, contrast, saturation, hue), (first, saturation, hue, contrast)}


def test_color_jitter_keeps_masks():
    scene = scene_of([rectangle((6, 6), 0, 0, 3, 3)])
    result = augment(scene, [aug.random_color], np.random.default_rng(1))
    assert (result.image != scene.image).any()
    assert result.image.dtype == np.uint8
    before, after = (all_masks(each.ground_truth, each.geometry) for each in (scene, result))
    np.testing.assert_array_equal(after, before)


def test_a_chain_is_drawn_for_half_of_the_images():
    draw = partial(aug.random_chain, empty_scene(4, 6), augmentations=[partial(aug.pad_to, size=8)] * 2)
    chains = [draw(np.random.default_rng(seed)).steps for seed in range(400)]
    assert 150 < sum(chain == () for chain in chains) < 250
    assert set(chains) == {(), (Pad(4, 2), Pad(0, 0))}  # the second draws for the padded image
