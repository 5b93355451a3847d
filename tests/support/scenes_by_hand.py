"""Scenes to augment, and transforms applied by hand."""

import numpy as np
from PIL import Image
from synthetic_coco import ground_truth_of

from mask2former.data.augmentation import Crop, Flip, Resize, Scene
from mask2former.data.ground_truth.geometry import Geometry


def scene_of(masks, classes=None):
    """Return an image of noise with the given masks (N, H, W)."""
    masks = np.asarray(masks, dtype=bool)
    height, width = masks.shape[1:]
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    classes = np.arange(len(masks)) if classes is None else np.array(classes)
    return Scene(image, Geometry.identity(height, width), ground_truth_of(classes, masks))


def empty_scene(height, width):
    return scene_of(np.zeros((0, height, width)))


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
