"""Augmentation against Pillow, against masks transformed step by step, and against hand-made cases."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from synthetic_coco import all_masks, ground_truth_of, rectangle
from transform_chains import SIDES as sides
from transform_chains import transform_chains

from mask2former.config import get_cfg
from mask2former.data import augmentation as aug
from mask2former.data import augmentation_recipes as recipes
from mask2former.data.augmentation import Crop, FastResize, Flip, Pad, Resize, Scene, augment
from mask2former.data.ground_truth.geometry import Geometry
from mask2former.utils.label_maps import nearest_pixels

seeds = st.integers(0, 2**32 - 1)


def scene_of(masks, classes=None):
    """Return an image of noise with the given masks (N, H, W)."""
    masks = np.asarray(masks, dtype=bool)
    height, width = masks.shape[1:]
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    classes = np.arange(len(masks)) if classes is None else np.array(classes)
    return Scene(image, Geometry.identity(height, width), ground_truth_of(classes, masks))


def empty_scene(height, width):
    return scene_of(np.zeros((0, height, width)))


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


def by_hand(step, array, nearest):
    """Apply a transform to an array (H, W) or (H, W, 3) by Pillow and numpy."""
    if isinstance(step, Resize):
        method = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
        image = Image.fromarray(np.ascontiguousarray(array))
        return np.asarray(image.resize((step.width, step.height), method))
    if isinstance(step, Flip):
        return {None: array, 0: array[::-1], 1: array[:, ::-1]}[step.axis]
    if isinstance(step, Crop):
        return array[step.top :][: step.height, step.left :][:, : step.width]
    larger = np.full(
        (array.shape[0] + step.bottom, array.shape[1] + step.right, *array.shape[2:]), 0 if nearest else 128
    )
    larger[: array.shape[0], : array.shape[1]] = array
    return larger.astype(np.uint8)


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


def lsj(size, low=0.1, high=2.0, flip="horizontal"):
    cfg = get_cfg()
    cfg.INPUT.IMAGE_SIZE, cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE = size, low, high
    cfg.INPUT.RANDOM_FLIP = flip
    return recipes.large_scale_jitter(cfg)


@given(sides, sides, seeds)
def test_large_scale_jitter_always_fills_its_square(height, width, seed):
    result = augment(empty_scene(height, width), lsj(32), np.random.default_rng(seed))
    assert result.image.shape == (32, 32, 3)
    assert result.geometry.size == (32, 32)
    padding = (result.geometry.rows.pixels < 0)[:, None] | (result.geometry.cols.pixels < 0)
    assert (result.image[padding] == 128).all()
    assert not padding[0, 0]
    rows = result.geometry.rows.pixels
    assert (np.diff(rows[rows >= 0]) >= 0).all()


def test_large_scale_jitter_recolors_all_but_the_padding():
    cfg = get_cfg()
    cfg.INPUT.IMAGE_SIZE, cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE, cfg.INPUT.PAD_LEVEL = 32, 0.5, 0.5, 0
    plain = recipes.large_scale_jitter(cfg)
    cfg.INPUT.COLOR_AUG_SSD = True
    recolored, changed = recipes.large_scale_jitter(cfg), 0
    for seed in range(8):
        before, after = (
            augment(empty_scene(20, 40), steps, np.random.default_rng(seed)) for steps in (plain, recolored)
        )
        np.testing.assert_array_equal(before.geometry.cols.pixels, after.geometry.cols.pixels)
        padding = (before.geometry.rows.pixels < 0)[:, None] | (before.geometry.cols.pixels < 0)
        assert padding.sum() == 32 * 32 - 8 * 16
        assert not before.image[padding].any() and not after.image[padding].any()
        changed += (before.image != after.image).any()
    assert changed >= 6  # no operation at all has a chance of 1/16


def test_scale_1_fits_the_image_into_the_square():
    masks = [rectangle((20, 40), 5, 10, 10, 30)]
    result = augment(scene_of(masks), lsj(40, 1.0, 1.0, "none"), np.random.default_rng(3))
    np.testing.assert_array_equal(result.image[:20], scene_of(masks).image)
    assert (result.image[20:] == 128).all()
    np.testing.assert_array_equal(all_masks(result.ground_truth, result.geometry)[0, :20], masks[0])
    assert not all_masks(result.ground_truth, result.geometry)[0, 20:].any()


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


@pytest.mark.parametrize(
    "recipe", [recipes.large_scale_jitter, recipes.shortest_edge_crop, recipes.zoom_and_crop]
)
def test_augmentation_depends_on_the_seed_alone(recipe):
    cfg = get_cfg()
    cfg.INPUT.IMAGE_SIZE, cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.COLOR_AUG_SSD = 32, (20, 30), True
    cfg.INPUT.CROP.ENABLED = True
    first, second, other = (
        augment(empty_scene(20, 30), recipe(cfg), np.random.default_rng(seed)) for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(first.image, second.image)
    assert first.image.shape != other.image.shape or (first.image != other.image).any()


def test_shortest_edge_crop_pads_to_a_square():
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (16, 24), 60
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", (20, 20)
    cfg.INPUT.COLOR_AUG_SSD, cfg.INPUT.SIZE_DIVISIBILITY, cfg.INPUT.PAD_LEVEL = True, 24, 7
    names = [getattr(step, "func", step).__name__ for step in recipes.shortest_edge_crop(cfg)]
    assert names == ["random_shortest_edge", "random_crop", "random_color", "random_flip", "pad_to"]
    for seed in range(20):
        result = augment(empty_scene(18, 40), recipes.shortest_edge_crop(cfg), np.random.default_rng(seed))
        assert result.image.shape == (24, 24, 3)
        assert (result.image[20:] == 7).all()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("RANDOM_FLIP", "diagonal", "INPUT.RANDOM_FLIP is 'diagonal'; it can be one of none, vertical"),
        ("MIN_SIZE_TRAIN_SAMPLING", "any", "INPUT.MIN_SIZE_TRAIN_SAMPLING is 'any'; it can be one of choice"),
        ("CROP.TYPE", "round", "INPUT.CROP.TYPE is 'round'; it can be one of absolute, absolute_range"),
        ("CROP.SIZE", (0.9, 1.5), r"INPUT.CROP.SIZE is \(0\.9, 1\.5\); a 'relative_range' crop takes shares"),
        ("CROP.SIZE", (0.9, 0.9, 0.9), "a 'relative_range' crop takes shares up to 1 of height and width"),
        ("MIN_SIZE_TRAIN_SAMPLING", "range", r"INPUT.MIN_SIZE_TRAIN must be two sizes .*not \(800,\)"),
    ],
)
def test_unknown_choices_are_errors_that_list_the_known(key, value, message):
    cfg = get_cfg()
    cfg.merge_from_list(["INPUT.CROP.ENABLED", True, f"INPUT.{key}", value])
    with pytest.raises(ValueError, match=message):
        recipes.shortest_edge_crop(cfg)


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        (
            "absolute",
            (0.9, 0.9),
            r"\(0\.9, 0\.9\); a 'absolute' crop takes a height and a width",
        ),
        (
            "absolute_range",
            (600, 384),
            r"\(600, 384\); a 'absolute_range' crop takes the least and",
        ),
        ("relative", (2, 1), r"\(2, 1\); a 'relative' crop takes shares"),
    ],
)
def test_crop_sizes_that_do_not_fit_the_kind_of_crop_are_errors(kind, size, message):
    cfg = get_cfg()
    cfg.merge_from_list(["INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", kind, "INPUT.CROP.SIZE", size])
    for recipe in (recipes.shortest_edge_crop, recipes.zoom_and_crop):
        with pytest.raises(ValueError, match=f"^INPUT.CROP.SIZE is {message}"):
            recipe(cfg)


def detr(sizes=(480, 800), max_size=1333, crop=True):
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = sizes, max_size
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = crop, "absolute_range", [384, 600]
    return recipes.zoom_and_crop(cfg)


def drawn_by_hand(size, seed):
    """Draw DETR's transforms for an image (H, W): a flip, perhaps a resizing and a crop, a resizing."""
    rng = np.random.default_rng(seed)
    steps = [Flip(1 if rng.random() < 0.5 else None)]
    if rng.random() < 0.5:
        steps.append(aug.resize_shortest_edge(size, int(rng.choice([400, 500, 600])), 10**9))
        size = steps[-1].height, steps[-1].width
        height, width = (rng.integers(min(side, 384), min(side, 600) + 1) for side in size)
        top, left = rng.integers(size[0] - height + 1), rng.integers(size[1] - width + 1)
        steps.append(Crop(top, left, height, width))
        size = height, width
    return [*steps, aug.resize_shortest_edge(size, int(rng.choice([480, 800])), 1333)]


@pytest.mark.parametrize("size", [(60, 90), (300, 100), (50, 50)])
def test_detrs_recipe_equals_its_transforms_drawn_and_applied_one_by_one(size):
    scene, cropped = scene_of(np.random.default_rng(1).random((2, *size)) < 0.5), []
    for seed in range(12):
        result = augment(scene, detr(), np.random.default_rng(seed))
        image, masks = scene.image, np.array(all_masks(scene.ground_truth, scene.geometry), np.uint8)
        steps = drawn_by_hand(size, seed)
        for step in steps:
            image = by_hand(step, image, nearest=False)
            masks = np.stack([by_hand(step, mask, nearest=True) for mask in masks])
        cropped.append(len(steps) == 4)
        assert result.image.shape == image.shape
        assert np.abs(result.image.astype(int) - image).mean() < 0.1  # values that round to the next
        np.testing.assert_array_equal(all_masks(result.ground_truth, result.geometry), masks.astype(bool))
    assert {True, False} == set(cropped)


def test_detrs_recipe_without_crops_resizes_alone():
    for seed in range(6):
        result = augment(empty_scene(60, 90), detr(crop=False), np.random.default_rng(seed))
        assert result.size in {(480, 720), (800, 1200)}


def test_a_chain_is_drawn_for_half_of_the_images():
    draw = partial(aug.random_chain, empty_scene(4, 6), augmentations=[partial(aug.pad_to, size=8)] * 2)
    chains = [draw(np.random.default_rng(seed)).steps for seed in range(400)]
    assert 150 < sum(chain == () for chain in chains) < 250
    assert set(chains) == {(), (Pad(4, 2), Pad(0, 0))}  # the second draws for the padded image
