"""Augmentation of clips: what their frames share, colors as in Detectron2, rotated masks."""

import numpy as np
import pytest
from synthetic_coco import donut, ground_truth_of, rectangle

from mask2former.config import get_cfg
from mask2former.data.augmentation import Scene
from mask2former.data.clip_augmentation import (
    COLORS,
    augment_clip,
    clip_steps,
    random_rotation,
)
from mask2former.data.ground_truth.geometry import Geometry

SIZE = (40, 56)


def scenes(count=3):
    """Return frames with different pixels, and the same mask in each."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, *SIZE, 3), dtype=np.uint8)
    truth = ground_truth_of(np.zeros(1, np.int64), donut(SIZE)[None])
    return [Scene(image, Geometry.identity(*SIZE), truth) for image in images]


def config(**values):
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN = (30, 50)
    for key, value in values.items():
        cfg.INPUT[key] = value
    return cfg


def geometries(cfg, seed):
    """Return of each frame (size, whether it is mirrored)."""
    frames = augment_clip(scenes(), clip_steps(cfg), np.random.default_rng(seed))
    assert all(frame.image.shape[:2] == frame.size for frame in frames)
    return [(frame.size, frame.geometry.cols.scale < 0) for frame in frames]


def test_by_clip_all_frames_have_one_size_and_flip():
    cfg = config(MIN_SIZE_TRAIN_SAMPLING="choice_by_clip", RANDOM_FLIP="flip_by_clip")
    found = [geometries(cfg, seed) for seed in range(40)]
    assert all(len(set(frames)) == 1 for frames in found)
    sizes, flips = zip(*(frames[0] for frames in found), strict=True)
    assert {*sizes} == {(30, 42), (50, 70)} and {*flips} == {True, False}


def test_a_range_by_clip():
    cfg = config(MIN_SIZE_TRAIN_SAMPLING="range_by_clip", RANDOM_FLIP="none")
    found = [geometries(cfg, seed) for seed in range(40)]
    assert all(len(set(frames)) == 1 for frames in found)
    edges = {frames[0][0][0] for frames in found}
    assert len(edges) > 5 and min(edges) >= 30 and max(edges) <= 50


def test_without_by_clip_each_frame_is_flipped_for_itself_but_sizes_are_shared():
    cfg = config(RANDOM_FLIP="horizontal")
    found = [geometries(cfg, seed) for seed in range(20)]
    assert any(len({flip for _, flip in frames}) == 2 for frames in found)
    assert all(len({size for size, _ in frames}) == 1 for frames in found)


def test_a_crop_is_that_of_all_frames():
    cfg = config(MIN_SIZE_TRAIN=(0,), RANDOM_FLIP="none")
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [20, 30]
    frames = augment_clip(scenes(), clip_steps(cfg), np.random.default_rng(3))
    first = frames[0].geometry
    for frame, scene in zip(frames, scenes(), strict=True):
        np.testing.assert_array_equal(frame.image, scene.image[np.ix_(first.rows.pixels, first.cols.pixels)])


def blend(image, other, strength):
    """Return Detectron2's BlendTransform: strength of the image, the rest of the other."""
    return np.clip(strength * image.astype(np.float32) + (1 - strength) * other, 0, 255).astype(np.uint8)


OTHERS = {
    "brightness": lambda image: 0,
    "contrast": lambda image: image.mean(),
    "saturation": lambda image: image.dot([0.299, 0.587, 0.114])[:, :, np.newaxis],
}


@pytest.mark.parametrize("name", COLORS)
@pytest.mark.parametrize("strength", [0.9, 1.0, 1.07])
def test_colors_blend_with_black_the_mean_or_gray(name, strength):
    image = scenes(1)[0].image
    expected = blend(image, OTHERS[name](image), strength).astype(int)
    assert np.abs(COLORS[name](image, strength).astype(int) - expected).max() <= 1


def test_colors_are_drawn_for_each_frame_in_order():
    cfg = config(MIN_SIZE_TRAIN=(0,), RANDOM_FLIP="none", AUGMENTATIONS=["contrast", "brightness"])
    same = [scenes(1)[0]] * 3
    frames = augment_clip(same, clip_steps(cfg), np.random.default_rng(0))
    assert len({frame.image.tobytes() for frame in frames}) == 3
    assert len(clip_steps(cfg)) == 4  # size, flip, brightness, contrast


def test_an_unknown_augmentation_is_an_error():
    with pytest.raises(
        ValueError, match=r"INPUT\.AUGMENTATIONS is 'blur'; it can be one of brightness, .*rotation"
    ):
        clip_steps(config(AUGMENTATIONS=["blur"]))


def test_image_and_masks_are_rotated_together():
    mask = rectangle(SIZE, 8, 12, 30, 44)
    image = np.where(mask[..., None], 255, 0).astype(np.uint8).repeat(3, axis=2)
    moved = []
    for seed in range(10):
        rotation = random_rotation(SIZE, np.random.default_rng(seed))
        (turned,) = rotation.apply_masks(mask[None])
        shown = rotation.apply_image(image)[..., 0] > 127
        assert (turned != shown).sum() <= 8
        moved.append((turned != mask).any())
        assert abs(int(turned.sum()) - int(mask.sum())) < 60
    assert sum(moved) >= 8
    assert rotation.apply_masks(np.zeros((0, *SIZE), bool)).shape == (0, *SIZE)
