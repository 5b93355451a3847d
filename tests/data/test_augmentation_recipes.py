"""Recipes of augmentations, against hand-made cases and transforms applied one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scenes_by_hand import by_hand, empty_scene, scene_of
from synthetic_coco import all_masks, rectangle
from transform_chains import SIDES as sides

from mask2former.config import get_cfg
from mask2former.data import augmentation as aug
from mask2former.data import augmentation_recipes as recipes
from mask2former.data.augmentation import Crop, Flip, augment

seeds = st.integers(0, 2**32 - 1)


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
