"""Scenes of the synthetic datasets: a kind of stuff on each side of a line, and things on top.

Shapes: `H, W` the sides of an image in pixels.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

TABLES = Path(__file__).parents[3] / "mask2former" / "data" / "datasets" / "metadata"
SHAPES = {  # corners in the unit square, xy
    "box": [(0, 0), (1, 0), (1, 1), (0, 1)],
    "triangle": [(0.5, 0), (1, 1), (0, 1)],
    "diamond": [(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)],
}
Polygon = list[tuple[int, int]]
Size = tuple[int, int]


@dataclass
class Region:
    """A region and its class; `mask` (H, W) bool holds hidden parts too."""

    category: int
    polygon: Polygon
    mask: np.ndarray


@dataclass
class Scene:
    """Regions, back to front."""

    size: Size
    stuff: list[Region]
    things: list[Region]

    def labels(self, nothing: int = -1) -> np.ndarray:
        """The class of each pixel, (H, W)."""
        layers = [(region.mask, region.category) for region in self.stuff + self.things]
        return painted(self.size, layers, nothing)

    def visible(self) -> list[np.ndarray]:
        """The mask of each thing without what later ones hide."""
        layers = [(thing.mask, number) for number, thing in enumerate(self.things)]
        owner = painted(self.size, layers, -1)
        return [owner == number for number in range(len(self.things))]


def read_table(name: str) -> Any:
    return json.loads((TABLES / name).read_text())


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(np.int64)


def read_ids(path: Path) -> np.ndarray:
    """Return the segment ids (H, W) of a panoptic PNG."""
    return read(path) @ [1, 256, 65536]


def check_segments(ids: np.ndarray, segments: Sequence[dict[str, Any]]) -> None:
    """Compare the areas and boxes of `segments_info` with the segment ids (H, W) of the PNG."""
    assert {segment["id"] for segment in segments} == {*np.unique(ids).tolist()} - {0}
    for segment in segments:
        rows, columns = np.nonzero(ids == segment["id"])
        assert segment["area"] == len(rows)
        assert segment["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]


def painted(size: Size, layers: Sequence[tuple[np.ndarray, int]], nothing: int) -> np.ndarray:
    """Values of later layers over earlier ones, (H, W) int64."""
    values = np.full(size, nothing, np.int64)
    for mask, value in layers:
        values[mask] = value
    return values


def fill_polygon(polygon: Polygon, size: Size) -> np.ndarray:
    """The pixels that Pillow fills, as Cityscapes' tools do; (H, W) bool."""
    image = Image.new("L", size[::-1])
    ImageDraw.Draw(image).polygon(polygon, fill=1)
    return np.asarray(image) > 0


def random_scene(
    rng: np.random.Generator,
    size: Size,
    *,
    stuff: Sequence[int],
    things: Sequence[int],
    fill: Callable[[Polygon, Size], np.ndarray] = fill_polygon,
    overlap: bool = False,
) -> Scene:
    """Two of `stuff`, with a strip of nothing at the bottom, and one thing of each class of `things`."""
    height, width = size
    ground = height - max(2, height // 16)
    left, right = sorted(int(x) for x in rng.integers(width // 4, width - width // 4, 2))
    halves = [
        [(0, 0), (left, 0), (right, ground), (0, ground)],
        [(left + 1, 0), (width, 0), (width, ground), (right + 1, ground)],
    ]
    kinds = rng.choice(len(stuff), 2, replace=False)
    background = [
        Region(stuff[kind], polygon, fill(polygon, size)) for kind, polygon in zip(kinds, halves, strict=True)
    ]
    return Scene(size, background, _things(rng, size, things, fill, overlap))


def _things(
    rng: np.random.Generator,
    size: Size,
    categories: Sequence[int],
    fill: Callable[[Polygon, Size], np.ndarray],
    overlap: bool,
) -> list[Region]:
    """Return one polygon in each cell; with `overlap` they reach into the neighboring cells."""
    rows = 2
    columns = max(1, -(-len(categories) // rows))
    cell = np.array([size[1] / columns, size[0] * 15 / 16 / rows])  # xy
    regions = []
    for category, place in zip(categories, rng.permutation(rows * columns), strict=False):
        corner = np.array([place % columns, place // columns]) * cell
        extent = rng.uniform(0.6, 0.8, 2) * cell * (1.5 if overlap else 1)
        shape = list(SHAPES.values())[category % len(SHAPES)]
        start = corner + rng.uniform(0.05, 0.15, 2) * cell
        polygon = [(int(x), int(y)) for x, y in start + np.array(shape) * extent]
        regions.append(Region(category, polygon, fill(polygon, size)))
    return regions


def color_of(category: int) -> np.ndarray:
    """Return the color of a class, (3,)."""
    return np.random.default_rng([99, category + 1]).integers(30, 226, 3)


def photograph(rng: np.random.Generator, labels: np.ndarray) -> Image.Image:
    """Each class in its color, with noise: an RGB image."""
    colors = np.array([color_of(int(label)) for label in np.unique(labels)])
    image = colors[np.unique(labels, return_inverse=True)[1]].reshape(*labels.shape, 3)
    return Image.fromarray(np.clip(image + rng.normal(0, 12, image.shape), 0, 255).astype(np.uint8))


def save(image: Image.Image | np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    image.save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))


def save_json(content: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def segment_colors(ids: np.ndarray) -> np.ndarray:
    """Segment ids (H, W) as the RGB of a panoptic PNG."""
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)


def box_of(mask: np.ndarray) -> list[int]:
    """XYWH in pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]


def segment(mask: np.ndarray, segment_id: int, category_id: int, iscrowd: int = 0) -> dict[str, Any]:
    """A row of a panoptic JSON's `segments_info`."""
    shape = {"area": int(mask.sum()), "bbox": box_of(mask)}
    return {"id": segment_id, "category_id": category_id, **shape, "iscrowd": iscrowd}
