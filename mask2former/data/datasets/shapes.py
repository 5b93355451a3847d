"""The embedded dataset `shapes`: synthetic images of circles, squares and triangles over two textures.

Colors vary, shapes hide one another, are noisy and slightly rotated: the class of a shape is its form alone.

Shapes: `H, W` the sides of an image in pixels.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from mask2former.data.datasets.coco import Row
from mask2former.data.datasets.drawn import LABEL_DIVISOR, DrawnDataset, Rng, SyntheticImage, paint
from mask2former.utils.label_maps import Array

SIDE = 128
SPLITS = {"train": 3000, "val": 150}
MAX_ROTATION = np.pi / 12  # of a shape, either way

CATEGORIES: list[Row] = [
    {"id": 1, "name": "circle", "isthing": 1, "color": [220, 60, 60]},
    {"id": 2, "name": "square", "isthing": 1, "color": [60, 160, 70]},
    {"id": 3, "name": "triangle", "isthing": 1, "color": [60, 90, 220]},
    {"id": 4, "name": "stripes", "isthing": 0, "color": [235, 200, 120]},
    {"id": 5, "name": "checks", "isthing": 0, "color": [150, 200, 220]},
]
THINGS = [category for category in CATEGORIES if category["isthing"]]


def _stripes(rng: Rng, side: int) -> Array:
    """Return slanted stripes: (H, W) bool, True for the first of two colors."""
    y, x = np.mgrid[:side, :side]
    angle = rng.uniform(0, np.pi)
    return (x * np.cos(angle) + y * np.sin(angle)) % 10 < 5


def _checks(rng: Rng, side: int) -> Array:
    """Return a chessboard: (H, W) bool, True for the first of two colors."""
    y, x = np.mgrid[:side, :side] + rng.integers(0, 12, (2, 1, 1))
    return (x // 6 + y // 6) % 2 == 0


# Corners, and a factor of the radius that makes the areas similar. A polygon of many corners is a circle.
FORMS = {"circle": (48, 1.0), "square": (4, 1.25), "triangle": (3, 1.45)}
TEXTURES = {"stripes": _stripes, "checks": _checks}


def draw_background(rng: Rng, side: int) -> SyntheticImage:
    """Draw two textures, one on each side of a line; the image is float64, not yet clipped to 0..255."""
    image = np.zeros((side, side, 3))
    ids = np.zeros((side, side), dtype=np.int64)
    y, x = np.mgrid[:side, :side]
    angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-0.3, 0.3) * side
    half = (x - side / 2) * np.cos(angle) + (y - side / 2) * np.sin(angle) > offset
    stuff = [category for category in CATEGORIES if not category["isthing"]]
    for category, where in zip(stuff, (half, ~half), strict=True):
        two_colors = np.array(category["color"]) * [[1.0], [0.55]] + rng.uniform(-60, 60, (2, 3))
        pattern = TEXTURES[category["name"]](rng, side).astype(np.int64)
        paint(rng, image, where, two_colors[pattern[where]])
        ids[where] = category["id"] * LABEL_DIVISOR
    return SyntheticImage(image, ids)


def form_mask(name: str, center: Array, radius: float, rotation: float, side: int) -> Array:
    """Return the mask (H, W) bool of a form at `center` (x, y), in pixels.

    The radius is a share of the side, the rotation in radians.
    """
    corners, size = FORMS[name]
    angles = np.pi / 2 - np.pi / corners + rotation + 2 * np.pi * np.arange(corners) / corners
    corner = np.stack([np.cos(angles), np.sin(angles)], axis=1)  # (corners, 2) xy
    vertices = center + size * radius * side * corner
    inside = np.zeros((side, side), dtype=np.uint8)
    cv2.fillPoly(inside, [np.rint(vertices).astype(np.int32)], 1)
    return inside > 0


def draw_image(rng: Rng, side: int = SIDE) -> SyntheticImage:
    """Draw two textures, one on each side of a line, and three to seven shapes that may hide one another."""
    image, ids = draw_background(rng, side)
    for number in range(1, 1 + int(rng.integers(3, 8))):
        category = THINGS[rng.integers(len(THINGS))]
        center, radius = rng.uniform(0.08, 0.92, 2) * side, rng.uniform(0.07, 0.18)
        rotation = rng.uniform(-MAX_ROTATION, MAX_ROTATION)
        inside = form_mask(category["name"], center, radius, rotation, side)
        paint(rng, image, inside, rng.uniform(0, 255, 3))
        ids[inside] = category["id"] * LABEL_DIVISOR + number
    return SyntheticImage(np.clip(image, 0, 255).astype(np.uint8), ids)


SHAPES = DrawnDataset("shapes", SIDE, SPLITS, CATEGORIES, draw_image)


def register_shapes() -> None:
    """Register both splits."""
    SHAPES.register()


def write_shapes(root: Path, counts: dict[str, int] | None = None, seed: int = 0) -> Path:
    """Draw the dataset into `root`/shapes unless the same one is there already; return that folder."""
    return SHAPES.write(root, counts, seed)
