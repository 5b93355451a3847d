"""The embedded dataset: images of circles, squares and triangles over two textures, drawn by us.

Every image follows from (seed, number) alone. `write_shapes` puts them on disk exactly as COCO lays out its
panoptic and instance annotations, and COCO's reader reads them, so that the small example exercises the code
that real data does. Textures vary about colors of their own; shapes hide one another, wear any color, are
noisy and slightly turned: only its form tells the class of a shape.

Shapes: `H, W` the sides of an image in pixels.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle
from tqdm import tqdm

from mask2former.utils.label_maps import write_segment_ids

SIDE = 128
SPLITS = {"train": 3000, "val": 150}
MAX_TURN = np.pi / 12  # of a shape, either way
LABEL_DIVISOR = 1000  # segment id = category id * LABEL_DIVISOR + number in the image

CATEGORIES: list[dict[str, Any]] = [
    {"id": 1, "name": "circle", "isthing": 1, "color": [220, 60, 60]},
    {"id": 2, "name": "square", "isthing": 1, "color": [60, 160, 70]},
    {"id": 3, "name": "triangle", "isthing": 1, "color": [60, 90, 220]},
    {"id": 4, "name": "stripes", "isthing": 0, "color": [235, 200, 120]},
    {"id": 5, "name": "checks", "isthing": 0, "color": [150, 200, 220]},
]
THINGS = [category for category in CATEGORIES if category["isthing"]]

Array = NDArray[Any]
Rng = np.random.Generator


class DrawnImage(NamedTuple):
    """A drawn image: `image` (H, W, 3) uint8 RGB, and `segment_ids` (H, W) int64."""

    image: Array
    segment_ids: Array


def _stripes(rng: Rng, side: int) -> Array:
    """Slanted stripes: (H, W) bool, true in one of the two colors."""
    y, x = np.mgrid[:side, :side]
    angle = rng.uniform(0, np.pi)
    return (x * np.cos(angle) + y * np.sin(angle)) % 10 < 5


def _checks(rng: Rng, side: int) -> Array:
    """A chessboard: (H, W) bool, true in one of the two colors."""
    y, x = np.mgrid[:side, :side] + rng.integers(0, 12, (2, 1, 1))
    return (x // 6 + y // 6) % 2 == 0


def _polygon(corners: int) -> Callable[[Rng, Array, float], Array]:
    """A drawer of regular polygons, slightly turned: (rng, center, radius) -> (corners, 2) xy."""

    def vertices(rng: Rng, center: Array, radius: float) -> Array:
        flat_bottom = np.pi / 2 - np.pi / corners
        angles = flat_bottom + rng.uniform(-MAX_TURN, MAX_TURN) + 2 * np.pi * np.arange(corners) / corners
        return center + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)

    return vertices


# Radii differ so that the areas of the three forms are alike, and a polygon of many corners is a circle.
FORMS: dict[str, tuple[Callable[[Rng, Array, float], Array], float]] = {
    "circle": (_polygon(48), 1.0),
    "square": (_polygon(4), 1.25),
    "triangle": (_polygon(3), 1.45),
}
TEXTURES = {"stripes": _stripes, "checks": _checks}


def _paint(rng: Rng, image: Array, where: Array, colors: Array) -> None:
    """Fill the pixels `where` with `colors` (3,) or (n, 3), and noise of a strength of its own."""
    noise = rng.normal(0, rng.uniform(8, 28), (int(where.sum()), 3))
    image[where] = colors + noise


def draw_image(rng: Rng, side: int = SIDE) -> DrawnImage:
    """Two textures on either side of a line, and three to seven shapes that may hide one another."""
    image = np.zeros((side, side, 3))
    ids = np.zeros((side, side), dtype=np.int64)
    y, x = np.mgrid[:side, :side]
    angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-0.3, 0.3) * side
    half = (x - side / 2) * np.cos(angle) + (y - side / 2) * np.sin(angle) > offset
    stuff = [category for category in CATEGORIES if not category["isthing"]]
    for category, where in zip(stuff, (half, ~half), strict=True):
        two_colors = np.array(category["color"]) * [[1.0], [0.55]] + rng.uniform(-60, 60, (2, 3))
        pattern = TEXTURES[category["name"]](rng, side).astype(np.int64)
        _paint(rng, image, where, two_colors[pattern[where]])
        ids[where] = category["id"] * LABEL_DIVISOR
    for number in range(1, 1 + int(rng.integers(3, 8))):
        category = THINGS[rng.integers(len(THINGS))]
        vertices, size = FORMS[category["name"]]
        center, radius = rng.uniform(0.08, 0.92, 2) * side, size * rng.uniform(0.07, 0.18) * side
        inside = np.zeros((side, side), dtype=np.uint8)
        cv2.fillPoly(inside, [np.rint(vertices(rng, center, radius)).astype(np.int32)], 1)
        _paint(rng, image, inside > 0, rng.uniform(0, 255, 3))
        ids[inside > 0] = category["id"] * LABEL_DIVISOR + number
    return DrawnImage(np.clip(image, 0, 255).astype(np.uint8), ids)


def _bounding_box(mask: Array) -> list[int]:
    """XYWH in pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = int(rows[0]), int(columns[0])
    return [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]


def _segment(mask: Array, segment_id: int) -> dict[str, Any]:
    """A row of `segments_info`, of what is visible."""
    return {
        "id": segment_id,
        "category_id": segment_id // LABEL_DIVISOR,
        "area": int(mask.sum()),
        "bbox": _bounding_box(mask),
        "iscrowd": 0,
    }


def _instance(mask: Array, segment: dict[str, Any], image_id: int) -> dict[str, Any]:
    """A row of the instance annotations, with a compressed RLE; its id is added by the caller."""
    code = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
    segmentation = {"size": code["size"], "counts": code["counts"].decode()}
    return {**segment, "image_id": image_id, "segmentation": segmentation}


def _write_image(root: Path, split: str, image_id: int, drawn: DrawnImage) -> tuple[dict, dict, list[dict]]:
    """Write an image and its PNG of ids; return its rows of images, panoptic and instance annotations."""
    name = f"{image_id:06d}"
    Image.fromarray(drawn.image).save(root / split / f"{name}.jpg", quality=92)
    ids = drawn.segment_ids
    write_segment_ids(root / f"panoptic_{split}" / f"{name}.png", ids)
    masks = {int(segment_id): ids == segment_id for segment_id in np.unique(ids)}
    segments = {segment_id: _segment(mask, segment_id) for segment_id, mask in masks.items()}
    thing_ids = {category["id"] for category in THINGS}
    instances = [
        _instance(masks[segment_id], segment, image_id)
        for segment_id, segment in segments.items()
        if segment["category_id"] in thing_ids
    ]
    height, width = ids.shape
    image = {"id": image_id, "file_name": f"{name}.jpg", "height": height, "width": width}
    panoptic = {"image_id": image_id, "file_name": f"{name}.png", "segments_info": [*segments.values()]}
    return image, panoptic, instances


def _write_split(root: Path, split: str, count: int, seed: int) -> None:
    """Draw `count` images and write them with both kinds of annotations."""
    for folder in (split, f"panoptic_{split}", "annotations"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    images, panoptic, instances = [], [], []
    for image_id in tqdm(range(1, count + 1), desc=f"drawing {split}", unit="image"):
        # The split takes part in the seed: train and val must not share images.
        rng = np.random.default_rng([seed, list(SPLITS).index(split), image_id])
        rows = _write_image(root, split, image_id, draw_image(rng))
        images.append(rows[0])
        panoptic.append(rows[1])
        instances += rows[2]
    for number, instance in enumerate(instances, start=1):
        instance["id"] = number
    common = {"images": images, "categories": CATEGORIES}
    annotations = root / "annotations"
    (annotations / f"panoptic_{split}.json").write_text(json.dumps({**common, "annotations": panoptic}))
    common["categories"] = THINGS
    (annotations / f"instances_{split}.json").write_text(json.dumps({**common, "annotations": instances}))


def write_shapes(root: Path, counts: dict[str, int] | None = None, seed: int = 0) -> Path:
    """Draw the dataset into `root`/shapes unless the same one is there already; returns that folder.

    It appears whole or not at all: an interrupted run leaves nothing that would be taken for the dataset.
    """
    counts = counts or SPLITS
    target, stamp = root / "shapes", json.dumps({"version": 1, "counts": counts, "seed": seed, "side": SIDE})
    stamp_file = target / "stamp.json"
    if stamp_file.exists() and stamp_file.read_text() == stamp:
        return target
    unfinished = root / "shapes.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    for split, count in counts.items():
        _write_split(unfinished, split, count, seed)
    (unfinished / "stamp.json").write_text(stamp)
    shutil.rmtree(target, ignore_errors=True)
    unfinished.rename(target)
    return target
