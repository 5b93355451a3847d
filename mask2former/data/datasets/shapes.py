"""The embedded dataset `shapes`: synthetic images of circles, squares and triangles over two textures.

Each image follows from (seed, number) alone. `write_shapes` writes them in COCO's layout and formats, and
COCO's reader reads them, so the small example runs the code that real datasets run. Colors vary, shapes hide
one another, are noisy and slightly rotated: the class of a shape is its form alone.

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
from PIL import Image
from pycocotools import mask as rle
from tqdm import tqdm

from mask2former.data.datasets.coco import PANOPTIC_FACTS, Row, load_panoptic, panoptic_categories
from mask2former.data.datasets.registration import register_below_root
from mask2former.utils.label_maps import Array, write_segment_ids

SIDE = 128
SPLITS = {"train": 3000, "val": 150}
MAX_ROTATION = np.pi / 12  # of a shape, either way
LABEL_DIVISOR = 1000  # segment id = category id * LABEL_DIVISOR + number of the segment

CATEGORIES: list[Row] = [
    {"id": 1, "name": "circle", "isthing": 1, "color": [220, 60, 60]},
    {"id": 2, "name": "square", "isthing": 1, "color": [60, 160, 70]},
    {"id": 3, "name": "triangle", "isthing": 1, "color": [60, 90, 220]},
    {"id": 4, "name": "stripes", "isthing": 0, "color": [235, 200, 120]},
    {"id": 5, "name": "checks", "isthing": 0, "color": [150, 200, 220]},
]
THINGS = [category for category in CATEGORIES if category["isthing"]]

Rng = np.random.Generator


def register_shapes() -> None:
    """Register both splits."""
    facts = {**PANOPTIC_FACTS, **panoptic_categories(CATEGORIES)}
    for split in SPLITS:
        paths = {
            "image_root": f"shapes/{split}",
            "panoptic_root": f"shapes/panoptic_{split}",
            "panoptic_json": f"shapes/annotations/panoptic_{split}.json",
            "json_file": f"shapes/annotations/instances_{split}.json",
        }
        register_below_root(f"shapes_panoptic_{split}", paths, facts, load_panoptic)


class SyntheticImage(NamedTuple):
    """`image` (H, W, 3) uint8 RGB, and `segment_ids` (H, W) int64."""

    image: Array
    segment_ids: Array


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


def paint(rng: Rng, image: Array, where: Array, colors: Array) -> None:
    """Fill the pixels `where` with `colors` (3,) or (n, 3) and noise of random strength."""
    noise = rng.normal(0, rng.uniform(8, 28), (int(where.sum()), 3))
    image[where] = colors + noise


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


def _write_image(root: Path, split: str, image_id: int, rng: Rng) -> tuple[Row, Row, list[Row]]:
    """Draw and write an image and its PNG; return its rows of images, panoptic and instance annotations."""
    name, (image, ids) = f"{image_id:06d}", draw_image(rng)
    Image.fromarray(image).save(root / split / f"{name}.jpg", quality=92)
    write_segment_ids(root / f"panoptic_{split}" / f"{name}.png", ids)
    segments, instances = [], []
    for segment_id in np.unique(ids).tolist():
        mask = ids == segment_id
        code = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
        segment = {
            "id": segment_id,
            "category_id": segment_id // LABEL_DIVISOR,
            "area": int(mask.sum()),
            "bbox": [int(value) for value in rle.toBbox(code)],
            "iscrowd": 0,
        }
        segments.append(segment)
        if segment["category_id"] in [category["id"] for category in THINGS]:
            segmentation = {"size": code["size"], "counts": code["counts"].decode()}
            instances.append({**segment, "image_id": image_id, "segmentation": segmentation})
    height, width = ids.shape
    row = {"id": image_id, "file_name": f"{name}.jpg", "height": height, "width": width}
    return row, {"image_id": image_id, "file_name": f"{name}.png", "segments_info": segments}, instances


def _write_split(root: Path, split: str, count: int, seed: int) -> None:
    """Draw `count` images and write them with both kinds of annotations."""
    for folder in (split, f"panoptic_{split}", "annotations"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    images, panoptic, instances = [], [], []
    for image_id in tqdm(range(1, count + 1), desc=f"drawing {split}", unit="image"):
        # The split is part of the seed: train and val must not share images.
        rng = np.random.default_rng([seed, list(SPLITS).index(split), image_id])
        image, segments, things = _write_image(root, split, image_id, rng)
        images.append(image)
        panoptic.append(segments)
        instances += things
    for number, instance in enumerate(instances, start=1):
        instance["id"] = number
    for kind, categories, rows in (("panoptic", CATEGORIES, panoptic), ("instances", THINGS, instances)):
        content = {"images": images, "categories": categories, "annotations": rows}
        (root / "annotations" / f"{kind}_{split}.json").write_text(json.dumps(content))


def write_shapes(root: Path, counts: dict[str, int] | None = None, seed: int = 0) -> Path:
    """Draw the dataset into `root`/shapes unless the same dataset is there already; return that folder."""
    counts = counts or SPLITS

    def write(folder: Path) -> None:
        for split, count in counts.items():
            _write_split(folder, split, count, seed)

    return write_once(root / "shapes", {"version": 1, "counts": counts, "seed": seed, "side": SIDE}, write)


def write_once(target: Path, facts: dict[str, Any], write: Callable[[Path], None]) -> Path:
    """Let `write` fill the folder `target` unless the same dataset, by its `facts`, is there; return it.

    The folder appears whole or not at all: an interrupted run leaves nothing that looks like the dataset.
    """
    stamp, stamp_file = json.dumps(facts), target / "stamp.json"
    if stamp_file.exists() and stamp_file.read_text() == stamp:
        return target
    unfinished = target.with_name(f"{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    write(unfinished)
    (unfinished / "stamp.json").write_text(stamp)
    shutil.rmtree(target, ignore_errors=True)
    unfinished.rename(target)
    return target
