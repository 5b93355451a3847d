"""Augmentation of clips: which steps all frames of a clip share, and which each frame draws for itself.

Crop and size are the clip's, so that its frames stay aligned and of one size. With INPUT.RANDOM_FLIP
flip_by_clip, so is the flip. Colors and rotations (INPUT.AUGMENTATIONS) are drawn for each frame, as
published (Mask2Former for Video Instance Segmentation, Cheng et al., 2021).

Shapes: `h, w` the sides of an augmented frame in pixels, `n` masks of a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np

from mask2former.data.augmentation import Augmentation, Recolor, Rng, Scene, choice, linear
from mask2former.data.augmentation_recipes import crop_step, flip_step, shortest_edge_step

STRENGTH = (0.9, 1.1)  # of brightness, contrast and saturation: 1 changes nothing
LUMA = np.array([0.299, 0.587, 0.114])  # of red, green and blue
MAX_ANGLE = 15.0  # degrees
CENTERS = (0.4, 0.6)  # of a rotation, as a share of the sides
ROTATION = "rotation"
FLIP_BY_CLIP = ("flip_by_clip", "none")


class ClipStep(NamedTuple):
    """An augmentation, drawn once for all frames of a clip or for each frame."""

    augmentation: Augmentation
    by_clip: bool


def augment_clip(scenes: Sequence[Scene], steps: Sequence[ClipStep], rng: Rng) -> list[Scene]:
    """Apply all steps, in order, to the frames of a clip, which have one size."""
    scenes = list(scenes)
    for augmentation, by_clip in steps:
        if by_clip:
            transforms = [augmentation(scenes[0], rng)] * len(scenes)
        else:
            transforms = [augmentation(scene, rng) for scene in scenes]
        scenes = [
            scene._replace(
                image=transform.apply_image(scene.image), geometry=transform.apply_geometry(scene.geometry)
            )
            for scene, transform in zip(scenes, transforms, strict=True)
        ]
    return scenes


def multiply(image: np.ndarray, gain: float) -> np.ndarray:
    """Multiply an image (h, w, 3) uint8 by `gain`."""
    return linear(image, gain=gain)


def stretch(image: np.ndarray, gain: float) -> np.ndarray:
    """Multiply the differences from the mean of an image (h, w, 3) uint8 by `gain`."""
    return linear(image, gain=gain, offset=(1 - gain) * float(image.mean()))


def saturate(image: np.ndarray, gain: float) -> np.ndarray:
    """Multiply the differences from gray of an image (h, w, 3) uint8 RGB by `gain`."""
    return linear(image, gain=gain, offset=(1 - gain) * (image @ LUMA)[..., None])


COLORS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "brightness": multiply,
    "contrast": stretch,
    "saturation": saturate,
}


def random_strength(
    scene: Scene, rng: Rng, *, operation: Callable[[np.ndarray, float], np.ndarray]
) -> Recolor:
    """Draw the strength of a color operation."""
    return Recolor(((operation, rng.uniform(*STRENGTH)),))


class Rotation(NamedTuple):
    """A rotation of a frame in place; corners that come from outside are black and belong to no object."""

    matrix: np.ndarray  # (2, 3), from pixels to pixels

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """Rotate an image (h, w, 3) uint8."""
        return cv2.warpAffine(image, self.matrix, image.shape[1::-1], flags=cv2.INTER_LINEAR)

    def apply_masks(self, masks: np.ndarray) -> np.ndarray:
        """Rotate masks (n, h, w) bool to the nearest pixel."""
        sides = masks.shape[:0:-1]
        turned = [
            cv2.warpAffine(mask.astype(np.uint8), self.matrix, sides, flags=cv2.INTER_NEAREST)
            for mask in masks
        ]
        return np.array(turned, dtype=bool).reshape(masks.shape)


def random_rotation(size: tuple[int, int], rng: Rng) -> Rotation:
    """Draw a rotation of a frame of `size` (h, w) around a point near its center."""
    angle, center = rng.uniform(-MAX_ANGLE, MAX_ANGLE), rng.uniform(*CENTERS, 2) * size[::-1] - 0.5
    return Rotation(cv2.getRotationMatrix2D(center.tolist(), angle, 1.0))


def clip_steps(cfg: Any) -> list[ClipStep]:
    """Return the published recipe: crop, shorter side, flip, colors.

    Raises:
        ValueError: a key of INPUT has a value that is not known.
    """
    steps = [ClipStep(crop_step(cfg), True)] if cfg.INPUT.CROP.ENABLED else []
    steps.append(ClipStep(shortest_edge_step(cfg), True))
    steps.append(ClipStep(flip_step(cfg), cfg.INPUT.RANDOM_FLIP in FLIP_BY_CLIP))
    for name in cfg.INPUT.AUGMENTATIONS:
        choice("INPUT.AUGMENTATIONS", name, {**COLORS, ROTATION: None})
    colors = [operation for name, operation in COLORS.items() if name in cfg.INPUT.AUGMENTATIONS]
    return [*steps, *(ClipStep(partial(random_strength, operation=color), False) for color in colors)]
