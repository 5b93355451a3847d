"""Augmentations: each draws a random transform for an image and its masks.

`augment` applies a list of them to an image and its ground truth. A transform changes the image and, if it
moves pixels, the `Geometry` from which the masks are made afterwards. The published recipes are
`large_scale_jitter` (COCO), `shortest_edge_crop` (ADE20K, Cityscapes, Mapillary Vistas) and `zoom_and_crop`
(MaskFormer on COCO).

Shapes: `H, W` the sides of the image before a transform, `h, w` after it, in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from mask2former.data.ground_truth.geometry import Geometry, GroundTruth

GRAY = 128
CROP_ATTEMPTS = 10  # draws before a crop dominated by one category is accepted
ZOOM_EDGES = (400, 500, 600)  # shorter sides, in pixels, of the images that DETR crops
ZOOM_MAX_SIZE = 32_768  # longer side; DETR has no limit, but only broken images are that long
Rng = np.random.Generator
FLIP_AXES = {"none": None, "vertical": 0, "horizontal": 1, "flip_by_clip": 1}
SAMPLING_IS_RANGED = {"choice": False, "range": True, "choice_by_clip": False, "range_by_clip": True}


class Scene(NamedTuple):
    """An image (H, W, 3) uint8 RGB, its geometry relative to the original image, and the ground truth."""

    image: np.ndarray
    geometry: Geometry
    ground_truth: GroundTruth

    @property
    def size(self) -> tuple[int, int]:
        """Return (H, W) in pixels."""
        return self.geometry.size


class Transform(Protocol):
    """A deterministic transform of an image and of its geometry."""

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """Transform an image: (H, W, 3) uint8 -> (h, w, 3) uint8."""

    def apply_geometry(self, geometry: Geometry) -> Geometry:
        """Transform a geometry of size (H, W) into one of size (h, w)."""


Augmentation = Callable[[Scene, Rng], Transform]


def augment(scene: Scene, augmentations: Sequence[Augmentation], rng: Rng) -> Scene:
    """Apply all augmentations, in order."""
    for augmentation in augmentations:
        transform = augmentation(scene, rng)
        geometry = transform.apply_geometry(scene.geometry)
        scene = Scene(transform.apply_image(scene.image), geometry, scene.ground_truth)
    return scene


class Flip(NamedTuple):
    """A flip along an axis: 0 swaps top and bottom, 1 left and right, None does nothing."""

    axis: int | None

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        return image if self.axis is None else cv2.flip(image, self.axis)

    def apply_geometry(self, geometry: Geometry) -> Geometry:
        rows, cols = geometry
        return Geometry(rows.flip() if self.axis == 0 else rows, cols.flip() if self.axis == 1 else cols)


class Resize(NamedTuple):
    """Pillow's resizing: the image bilinear with antialiasing, masks to the nearest pixel."""

    height: int
    width: int

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        if image.shape[:2] == (self.height, self.width):
            return image
        source = Image.fromarray(np.ascontiguousarray(image))
        return np.asarray(source.resize((self.width, self.height), Image.Resampling.BILINEAR))

    def apply_geometry(self, geometry: Geometry) -> Geometry:
        return Geometry(geometry.rows.resize(self.height), geometry.cols.resize(self.width))


class FastResize(Resize):
    """The same by torch, in a third of the time; a few values in a thousand differ from Pillow's by one.

    For training only: test images are resized exactly as for the published models.
    """

    __slots__ = ()

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        planes = torch.from_numpy(image).permute(2, 0, 1)
        resized = F.interpolate(planes[None], tuple(self), mode="bilinear", antialias=True)
        return resized[0].permute(1, 2, 0).numpy()


class Crop(NamedTuple):
    """A crop to a rectangle inside the image."""

    top: int
    left: int
    height: int
    width: int

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        return image[self.top : self.top + self.height, self.left : self.left + self.width]

    def apply_geometry(self, geometry: Geometry) -> Geometry:
        rows, cols = geometry
        return Geometry(rows.crop(self.top, self.height), cols.crop(self.left, self.width))


class Pad(NamedTuple):
    """Padding at the bottom and right: one gray level in the image, nothing in masks."""

    bottom: int
    right: int
    level: int = GRAY

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        height, width, channels = image.shape
        # Channels first in memory, as the model takes them: the pixels are rearranged only once.
        planes = np.full((channels, height + self.bottom, width + self.right), self.level, np.uint8)
        padded = planes.transpose(1, 2, 0)
        padded[:height, :width] = image
        return padded

    def apply_geometry(self, geometry: Geometry) -> Geometry:
        return Geometry(geometry.rows.pad(self.bottom), geometry.cols.pad(self.right))


class Recolor(NamedTuple):
    """Color operations `(function, amount)`, applied in order."""

    operations: tuple[tuple[Callable[[np.ndarray, float], np.ndarray], float], ...]

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        for operation, amount in self.operations:
            image = operation(image, amount)
        return image

    def apply_geometry(self, geometry: Geometry) -> Geometry:
        return geometry


class Chain(NamedTuple):
    """Transforms applied one after the other."""

    steps: tuple[Transform, ...]

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        for step in self.steps:
            image = step.apply_image(image)
        return image

    def apply_geometry(self, geometry: Geometry) -> Geometry:
        for step in self.steps:
            geometry = step.apply_geometry(geometry)
        return geometry


def random_chain(scene: Scene, rng: Rng, *, augmentations: Sequence[Augmentation]) -> Chain:
    """Apply all of the augmentations with probability 1/2, otherwise none.

    Each draws for the geometry that those before it leave; `scene.image` stays as it is until all are drawn.
    """
    steps: list[Transform] = []
    for augmentation in augmentations if rng.random() < 0.5 else ():
        steps.append(augmentation(scene, rng))
        scene = scene._replace(geometry=steps[-1].apply_geometry(scene.geometry))
    return Chain(tuple(steps))


def random_flip(scene: Scene, rng: Rng, *, axis: int | None) -> Flip:
    """Flip along `axis` with probability 1/2."""
    return Flip(axis if rng.random() < 0.5 else None)


def random_scale(scene: Scene, rng: Rng, *, size: int, min_scale: float, max_scale: float) -> FastResize:
    """Resize with the aspect ratio kept to fit a square of `size` pixels times a random scale."""
    scale = size * rng.uniform(min_scale, max_scale) / max(scene.size)
    height, width = (max(1, round(side * scale)) for side in scene.size)
    return FastResize(height, width)


def random_window(scene: Scene, rng: Rng, *, size: int) -> Crop:
    """Crop to at most `size` x `size`; one random number sets the position on both axes."""
    place = rng.random()
    top, left = (round(max(side - size, 0) * place) for side in scene.size)
    height, width = (min(side, size) for side in scene.size)
    return Crop(top, left, height, width)


def pad_to(scene: Scene, rng: Rng, *, size: int, level: int = GRAY) -> Pad:
    """Pad to `size` x `size` with a gray level; longer sides stay as they are."""
    bottom, right = (max(size - side, 0) for side in scene.size)
    return Pad(bottom, right, level)


def random_shortest_edge(
    scene: Scene, rng: Rng, *, sizes: Sequence[int], max_size: int, ranged: bool = False
) -> FastResize:
    """Resize the shorter side to one of `sizes`; if `ranged`, to any length from the first to the last."""
    edge = rng.integers(sizes[0], sizes[-1], endpoint=True) if ranged else rng.choice(sizes)
    return FastResize(*resize_shortest_edge(scene.size, int(edge), max_size))


def resize_shortest_edge(size: tuple[int, int], edge: int, max_size: int) -> Resize:
    """Return the resizing to a shorter side of `edge`, or less if the longer would exceed `max_size`.

    An `edge` of 0 keeps the size.
    """
    if edge == 0:
        return Resize(*size)
    long_side = edge / min(size) * max(size)
    shrink = min(1.0, max_size / long_side)
    short, long = max(1, int(edge * shrink + 0.5)), int(long_side * shrink + 0.5)
    return Resize(short, long) if size[0] < size[1] else Resize(long, short)


def _are_shares(height: float, width: float) -> bool:
    return 0 < height <= 1 and 0 < width <= 1


CROP_SIZES: dict[str, Callable[[np.ndarray, np.ndarray, Rng], np.ndarray]] = {
    "absolute": lambda sides, size, rng: np.minimum(sides, size),
    "absolute_range": lambda sides, size, rng: rng.integers(
        np.minimum(sides, size[0]), np.minimum(sides, size[1]), endpoint=True
    ),
    "relative": lambda sides, size, rng: sides * size,
    "relative_range": lambda sides, size, rng: sides * (size + rng.random(2) * (1 - size)),
}

CROP_RULES: dict[str, tuple[str, Callable[[float, float], bool]]] = {  # what INPUT.CROP.SIZE takes
    "absolute": ("a height and a width of at least 1 pixel", lambda height, width: min(height, width) >= 1),
    "absolute_range": ("the least and the greatest side in pixels", lambda low, high: 1 <= low <= high),
    "relative": ("shares up to 1 of height and width", _are_shares),
    "relative_range": ("shares up to 1 of height and width", _are_shares),
}


def random_crop(
    scene: Scene, rng: Rng, *, kind: str, size: Sequence[float], max_category_area: float = 1.0
) -> Crop:
    """Crop at a random position; `kind` and `size` are INPUT.CROP.TYPE and SIZE as Detectron2 defines them.

    If `max_category_area` is below 1, up to ten crops are drawn until one shows at least two categories, each
    with less than that share of the annotated pixels.
    """
    crop = _random_position(scene, rng, kind, size)
    for _ in range(CROP_ATTEMPTS - 1):
        if max_category_area >= 1 or _is_mixed(scene, crop, max_category_area):
            break
        crop = _random_position(scene, rng, kind, size)
    return crop


def _random_position(scene: Scene, rng: Rng, kind: str, size: Sequence[float]) -> Crop:
    sides = np.array(scene.size)
    crop_sides = (CROP_SIZES[kind](sides, np.array(size), rng) + 0.5).astype(int)
    top, left = rng.integers(sides - crop_sides, endpoint=True)
    return Crop(top, left, *crop_sides)


def _is_mixed(scene: Scene, crop: Crop, max_category_area: float) -> bool:
    indices, masks = scene.ground_truth.visible(crop.apply_geometry(scene.geometry))
    areas = np.bincount(scene.ground_truth.classes[indices], weights=masks.sum((1, 2)))
    return bool(np.count_nonzero(areas) > 1 and areas.max() < max_category_area * areas.sum())


def linear(values: np.ndarray, gain: float = 1, offset: float | np.ndarray = 0) -> np.ndarray:
    """Return `gain * values + offset` as uint8, cut off at 0 and 255."""
    return np.clip(values.astype(np.float32) * gain + offset, 0, 255).astype(np.uint8)


def change_brightness(image: np.ndarray, offset: float) -> np.ndarray:
    """Add `offset` to an image (H, W, 3) uint8."""
    return linear(image, offset=offset)


def change_contrast(image: np.ndarray, gain: float) -> np.ndarray:
    """Multiply an image (H, W, 3) uint8 by `gain`."""
    return linear(image, gain=gain)


def change_saturation(image: np.ndarray, gain: float) -> np.ndarray:
    """Multiply the saturation of an image (H, W, 3) uint8 RGB by `gain`."""
    hsv = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2HSV)
    hsv[..., 1] = linear(hsv[..., 1], gain=gain)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def change_hue(image: np.ndarray, shift: float) -> np.ndarray:
    """Rotate the hue of an image (H, W, 3) uint8 RGB by `shift`, in units of two degrees."""
    hsv = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0].astype(int) + int(shift)) % 180
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def random_color(scene: Scene, rng: Rng) -> Recolor:
    """Draw SSD's color jitter (Liu et al., 2016); each operation has probability 1/2."""
    brightness = (change_brightness, rng.uniform(-32, 32))
    contrast = (change_contrast, rng.uniform(0.5, 1.5))
    saturation = (change_saturation, rng.uniform(0.5, 1.5))
    hue = (change_hue, int(rng.integers(-18, 18, endpoint=True)))
    early_contrast = rng.random() < 0.5
    order = (contrast, saturation, hue) if early_contrast else (saturation, hue, contrast)
    return Recolor(tuple(operation for operation in (brightness, *order) if rng.random() < 0.5))


def choice(key: str, name: str, table: dict[str, Any]) -> Any:
    """Return `table[name]`; raise a ValueError that lists the names if the config's `key` has another one."""
    if name not in table:
        raise ValueError(f"{key} is '{name}'; it can be one of {', '.join(table)}")
    return table[name]
