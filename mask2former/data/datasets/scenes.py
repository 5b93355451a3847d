"""The drawn dataset `scenes`: many objects of 5 to 90 pixels, to measure on what `shapes` is too easy for.

Three textures lie under eight classes of things. A third of the objects is smaller than 12 pixels, many of
those stand in groups of one class, objects hide one another, and some have a pattern. A class has a form of
its own and a preferred hue, which varies so much that neither alone tells every object. Slivers that hardly
show are void. As in COCO, the instance annotations are looser than the panoptic ones: polygons of few
corners, a little outside the visible mask.

Shapes: `H, W` the sides of an image in pixels, `V` vertices.
"""

from __future__ import annotations

import colorsys
from typing import NamedTuple

import cv2
import numpy as np

from mask2former.data.datasets.coco import Row
from mask2former.data.datasets.drawn import (
    LABEL_DIVISOR,
    DrawnDataset,
    Instance,
    Rng,
    SyntheticImage,
    exact_instance,
    paint,
)
from mask2former.utils.label_maps import Array

SIDE = 192
SPLITS = {"train": 1500, "val": 300}
SIZES = {"small": (5.0, 12.0), "medium": (12.0, 40.0), "large": (40.0, 90.0)}  # sides of the boxes, in pixels
SHARES = {"small": 0.12, "medium": 0.58, "large": 0.3}  # of objects outside groups, which are small
AREA_LIMITS = (12.0**2, 40.0**2)  # of small and medium objects, for AP
VISIBLE = 6  # pixels; what shows less of an object is void
HUE_SPREAD = 0.035  # standard deviation, of a turn; the hues of classes are 0.125 apart
NOISE = (5, 18)
LOOSENESS = 1.05  # the instance outline's size, by that of the visible mask
STEPS = 16  # of a pixel, for the vertices of polygons

CATEGORIES: list[Row] = [
    {"id": 1, "name": "disc", "isthing": 1, "color": [220, 60, 60]},
    {"id": 2, "name": "square", "isthing": 1, "color": [220, 140, 40]},
    {"id": 3, "name": "triangle", "isthing": 1, "color": [200, 200, 40]},
    {"id": 4, "name": "bar", "isthing": 1, "color": [60, 180, 60]},
    {"id": 5, "name": "cross", "isthing": 1, "color": [40, 180, 180]},
    {"id": 6, "name": "star", "isthing": 1, "color": [60, 90, 220]},
    {"id": 7, "name": "moon", "isthing": 1, "color": [140, 60, 220]},
    {"id": 8, "name": "ring", "isthing": 1, "color": [220, 60, 160]},
    {"id": 9, "name": "stripes", "isthing": 0, "color": [200, 180, 140]},
    {"id": 10, "name": "checks", "isthing": 0, "color": [140, 170, 180]},
    {"id": 11, "name": "grain", "isthing": 0, "color": [150, 180, 130]},
]
THINGS = [category for category in CATEGORIES if category["isthing"]]
STUFF = [category for category in CATEGORIES if not category["isthing"]]


def _arc(start: float, stop: float, corners: int = 32) -> Array:
    """Return vertices (V, 2) on the unit circle, from one angle to another."""
    angles = np.linspace(start, stop, corners, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _moon() -> Array:
    """Return the unit circle without a circle around (0.6, 0), which cuts it at the angles 60° and -60°."""
    tip, center = np.pi / 3, np.array([0.6, 0.0])
    x, y = _arc(tip, 2 * np.pi, 1)[0] - center
    inner_tip = np.arctan2(y, x)
    inner = center + np.hypot(x, y) * _arc(2 * np.pi - inner_tip, inner_tip)
    return np.concatenate([_arc(tip, 2 * np.pi - tip), inner])


# Outlines (V, 2) in [-1, 1]; a second outline is a hole
CIRCLE = _arc(0, 2 * np.pi)
BAR = np.array([[-1.0, -0.3], [1.0, -0.3], [1.0, 0.3], [-1.0, 0.3]])
ARM = np.array([[0.35, -1.0], [0.35, -0.35], [1.0, -0.35]])  # a quarter of the cross
QUARTER_TURN = np.array([[0.0, 1.0], [-1.0, 0.0]])
FORMS: dict[str, list[Array]] = {
    "disc": [CIRCLE],
    "square": [_arc(0, 2 * np.pi, 4)],
    "triangle": [_arc(0, 2 * np.pi, 3)],
    "bar": [BAR],
    "cross": [np.concatenate([ARM @ np.linalg.matrix_power(QUARTER_TURN, turn) for turn in range(4)])],
    "star": [_arc(0, 2 * np.pi, 10) * np.where(np.arange(10) % 2, 0.42, 1.0)[:, None]],
    "moon": [_moon()],
    "ring": [CIRCLE, 0.55 * CIRCLE],
}


class SceneObject(NamedTuple):
    """An object to draw: index into `THINGS`, center (x, y) and side of its box in pixels."""

    thing: int
    center: Array
    size: float


def _size(rng: Rng, kind: str) -> float:
    """Return a random size of a kind; logarithms are distributed evenly."""
    low, high = np.log(SIZES[kind])
    return float(np.exp(rng.uniform(low, high)))


def _single_objects(rng: Rng) -> list[SceneObject]:
    kinds = rng.choice(list(SHARES), int(rng.integers(4, 10)), p=list(SHARES.values()))
    return [
        SceneObject(int(rng.integers(len(THINGS))), rng.uniform(0.04, 0.96, 2) * SIDE, _size(rng, kind))
        for kind in kinds
    ]


def _group(rng: Rng) -> list[SceneObject]:
    """Return four to eight small objects of one class, side by side on a loose grid."""
    thing, size = int(rng.integers(len(THINGS))), _size(rng, "small")
    start, columns = rng.uniform(0.05, 0.7, 2) * SIDE, int(rng.integers(2, 5))
    objects = []
    for number in range(int(rng.integers(4, 9))):
        place = np.array([number % columns, number // columns]) * 1.35 * size
        center = start + place + rng.normal(0, 0.12 * size, 2)
        objects.append(SceneObject(thing, center, float(np.clip(size * rng.uniform(0.85, 1.15), 5, 12))))
    return objects


def draw_objects(rng: Rng) -> list[SceneObject]:
    """Return what to draw: four to nine single objects, and in some images a group or two."""
    objects = _single_objects(rng)
    for _ in range(int(rng.integers(0, 3)) if rng.random() < 0.4 else 0):
        objects += _group(rng)
    return objects


def _color(rng: Rng, thing: int) -> Array:
    """Return an RGB color (3,) near the hue of a class of things."""
    hue = thing / len(THINGS) + rng.normal(0, HUE_SPREAD)
    return 255 * np.array(colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.4, 1), rng.uniform(0.45, 1)))


def _bands(rng: Rng, width: float) -> Array:
    """Return slanted bands: (H, W) bool, True in every second one."""
    y, x = np.mgrid[:SIDE, :SIDE]
    angle = rng.uniform(0, np.pi)
    return (x * np.cos(angle) + y * np.sin(angle)) % (2 * width) < width


def _checks(rng: Rng) -> Array:
    """Return a chessboard: (H, W) bool, True in every second field."""
    y, x = np.mgrid[:SIDE, :SIDE] + rng.integers(0, 16, (2, 1, 1))
    return (x // 8 + y // 8) % 2 == 0


def _grain(rng: Rng) -> Array:
    """Return blots of random form: (H, W) bool."""
    return cv2.GaussianBlur(rng.normal(0, 1, (SIDE, SIDE)), (0, 0), 2.5) > 0


def fill(outlines: list[Array]) -> Array:
    """Return the pixels (H, W) bool between outlines (V, 2), which are in pixels."""
    inside = np.zeros((SIDE, SIDE), dtype=np.uint8)
    points = [np.rint(outline * STEPS).astype(np.int32) for outline in outlines]
    cv2.fillPoly(inside, points, 1, shift=STEPS.bit_length() - 1)
    return inside > 0


def _draw_background(rng: Rng, image: Array, ids: Array) -> None:
    """Draw the three textures, each where its random point is the nearest."""
    y, x = np.mgrid[:SIDE, :SIDE]
    points = rng.uniform(0, SIDE, (len(STUFF), 2))
    nearest = np.argmin([np.hypot(x - a, y - b) for a, b in points], axis=0)
    patterns = {"stripes": _bands(rng, 6), "checks": _checks(rng), "grain": _grain(rng)}
    for number, category in enumerate(STUFF):
        where = nearest == number
        colors = np.array(category["color"]) * [[1.0], [0.7]] + rng.uniform(-45, 45, (2, 3))
        paint(rng, image, where, colors[patterns[category["name"]][where].astype(np.int64)], NOISE)
        ids[where] = category["id"] * LABEL_DIVISOR


def _draw_object(rng: Rng, image: Array, ids: Array, one: SceneObject, number: int) -> None:
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    category = THINGS[one.thing]
    where = fill([one.center + outline @ turn * one.size / 2 for outline in FORMS[category["name"]]])
    colors = np.stack([_color(rng, one.thing)] * 2)
    if rng.random() < 0.35:  # a pattern of two shades
        colors[1] *= 0.55
    paint(rng, image, where, colors[_bands(rng, 0.12 * one.size + 1)[where].astype(np.int64)], NOISE)
    ids[where] = category["id"] * LABEL_DIVISOR + number


def draw_scene(rng: Rng) -> SyntheticImage:
    """Draw three textures and the objects of `draw_objects` on them."""
    image = np.zeros((SIDE, SIDE, 3))
    ids = np.zeros((SIDE, SIDE), dtype=np.int64)
    _draw_background(rng, image, ids)
    objects = draw_objects(rng)
    # The larger ones mostly first, or they would hide the small ones
    order = np.argsort([-one.size * rng.uniform(0.4, 1.6) for one in objects])
    for number, index in enumerate(order, start=1):
        _draw_object(rng, image, ids, objects[index], number)
    numbers, areas = np.unique(ids, return_counts=True)
    ids[np.isin(ids, numbers[areas < VISIBLE])] = 0
    return SyntheticImage(np.clip(image, 0, 255).astype(np.uint8), ids)


def loose_instance(mask: Array) -> Instance:
    """Return the annotation of a visible mask (H, W) as an annotator would draw it: few corners, outside."""
    outlines, tree = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    tolerance = 0.4 + 0.015 * np.sqrt(mask.sum())
    loose = []
    for outline, (*_, parent) in zip(outlines, tree[0], strict=True):
        corners = cv2.approxPolyDP(outline, tolerance, True)[:, 0].astype(np.float64)
        center = corners.mean(axis=0)
        is_hole = parent >= 0
        loose.append(corners if is_hole else center + LOOSENESS * (corners - center))
    return exact_instance(fill(loose))


SCENES = DrawnDataset(
    "scenes",
    SIDE,
    SPLITS,
    CATEGORIES,
    draw_scene,
    loose_instance,
    facts={"area_limits": AREA_LIMITS},
    version=2,
)
