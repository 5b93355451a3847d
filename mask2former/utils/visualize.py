"""Visualization: results drawn over their image, with a color for each class, outlines and names.

A class has the same color in every image; instances of one class are shades of it. Line widths and letter
sizes follow the image's size, so that labels are legible at 128 pixels and at 4000. No display is needed.

Shapes: `H, W` the image's sides in pixels, `K` classes.
"""

import colorsys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mask2former.structures import Instances
from mask2former.utils.label_maps import Array

Color = tuple[int, int, int]
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; the last two exclusive

OPACITY = 0.5
GOLDEN_RATIO = 0.618034
MIN_LETTER = 10  # height of letters in pixels
LETTERS_PER_SIDE = 45  # letters that fit along the image's side
SHADES = (1.0, 0.75, 1.25, 0.6, 1.4)  # brightness of the first, second, ... instance of a class
LEGIBLE_SIDE = 512  # pixels; smaller images are enlarged by a whole factor, up to this side
SEARCH_SIDE = 256  # masks are shrunk to this side to find the place for a label


class Region(NamedTuple):
    """Part of an image: its mask (H, W) bool, its color, and its label."""

    mask: Array
    color: Color
    text: str


def class_colors(num_classes: int) -> list[Color]:
    """Return a color for each class id; an id's color does not depend on `num_classes`."""
    hsv = (
        (k * GOLDEN_RATIO % 1, (0.9, 0.6, 0.75)[k % 3], (0.95, 0.85, 0.7)[k // 3 % 3])
        for k in range(num_classes)
    )
    return [_rgb(*colorsys.hsv_to_rgb(*color)) for color in hsv]


def _rgb(red: float, green: float, blue: float) -> Color:
    """Convert channels in [0, 1], clipped, to 0..255."""
    return tuple(round(255 * min(max(channel, 0.0), 1.0)) for channel in (red, green, blue))  # type: ignore[return-value]


def shade(color: Color, number: int) -> Color:
    """Return the color of instance `number`, from 0, of the class that has `color`."""
    factor = SHADES[number % len(SHADES)]
    return _rgb(*(channel / 255 * factor for channel in color))


def semantic_regions(labels: Array, names: Sequence[str], colors: Sequence[Color]) -> list[Region]:
    """Return one region per class in the label map (H, W); labels from K on are ignored."""
    present = [k for k in np.unique(labels) if 0 <= k < len(names)]
    return [Region(labels == k, colors[k], names[k]) for k in present]


def panoptic_regions(
    ids: Array, segments: Iterable[Mapping[str, Any]], names: Sequence[str], colors: Sequence[Color]
) -> list[Region]:
    """Return one region per segment `{id, category_id}` of the id map (H, W)."""
    segments = list(segments)
    masks = (ids == segment["id"] for segment in segments)
    classes = [segment["category_id"] for segment in segments]
    return mask_regions(masks, classes, names, colors, largest_first=False)


def instance_regions(instances: Instances, names: Sequence[str], colors: Sequence[Color]) -> list[Region]:
    """Return one region per instance, with its score in the label, the largest first."""
    masks = (mask.cpu().numpy() for mask in instances.pred_masks)
    suffixes = [f" {score:.0%}" for score in instances.scores.tolist()]
    return mask_regions(masks, instances.pred_classes.tolist(), names, colors, suffixes)


def mask_regions(
    masks: Iterable[Array],
    classes: Sequence[int],
    names: Sequence[str],
    colors: Sequence[Color],
    suffixes: Sequence[str] = (),
    *,
    largest_first: bool = True,
) -> list[Region]:
    """Return one region per mask (H, W) bool, the largest first, so that small ones are drawn on top.

    `suffixes` are appended to the names in the labels.
    """
    seen: Counter[int] = Counter()
    regions = []
    for mask, k, suffix in zip(masks, classes, suffixes or [""] * len(classes), strict=True):
        regions.append(Region(mask, shade(colors[k], seen[k]), names[k] + suffix))
        seen[k] += 1
    return sorted(regions, key=lambda region: -int(region.mask.sum())) if largest_first else regions


def result_regions(task: str, result: Any, names: Sequence[str], colors: Sequence[Color]) -> list[Region]:
    """Return the regions of a model's result, which is (ids (H, W), segments) for the task "panoptic".

    For "instance" it is `Instances`, for "semantic" a label map (H, W).
    """
    regions: dict[str, Callable[..., list[Region]]] = {
        "panoptic": lambda segmented, *classes: panoptic_regions(*segmented, *classes),
        "instance": instance_regions,
        "semantic": semantic_regions,
    }
    return regions[task](result, names, colors)


def draw_regions(image: Array, regions: Sequence[Region]) -> Array:
    """Return a copy of the image (H, W, 3) uint8 RGB with the regions tinted, outlined and labeled.

    A region smaller than a letter, or without free space for its label, is tinted only.
    """
    canvas = image.copy()
    letter = max(MIN_LETTER, round((image.shape[0] * image.shape[1]) ** 0.5 / LETTERS_PER_SIDE))
    drawn = [(region, box) for region in regions if (box := _bounds(region.mask))]
    for region, box in drawn:
        part, mask = _crop(canvas, box), _crop(region.mask, box)
        part[mask] = (part[mask] * (1 - OPACITY) + np.array(region.color) * OPACITY).astype(np.uint8)
    for region, box in drawn:
        mask = _crop(region.mask, box).astype(np.uint8)
        contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=box[:2])
        cv2.drawContours(canvas, contours, -1, region.color, max(1, letter // 8))
    labeled = [(region, box) for region, box in drawn if region.mask.sum() >= letter * letter]
    labeled.sort(key=lambda item: -int(item[0].mask.sum()))
    return _write(canvas, [(region, _anchor(region.mask, box)) for region, box in labeled], letter)


def legible_scale(image: Array) -> int:
    """Return the factor by which to enlarge an image (H, W, 3) so that labels do not cover it."""
    return max(1, LEGIBLE_SIDE // max(image.shape[:2]))


def enlarge(array: Array, scale: int) -> Array:
    """Repeat each pixel of (H, W, ...) `scale` times in both directions."""
    return array.repeat(scale, axis=0).repeat(scale, axis=1)


def _bounds(mask: Array) -> Box | None:
    """Return the smallest box around a mask (H, W); None if it is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _crop(array: Array, box: Box) -> Array:
    left, top, right, bottom = box
    return array[top:bottom, left:right]  # a view


def _anchor(mask: Array, box: Box) -> tuple[int, int]:
    """Return the pixel (x, y) deepest inside a mask (H, W) with the bounds `box`."""
    mask = _crop(mask, box)
    scale = min(1.0, SEARCH_SIDE / max(mask.shape))
    sides = [max(1, round(side * scale)) for side in mask.shape]
    small = cv2.resize(mask.astype(np.uint8), (sides[1], sides[0]), interpolation=cv2.INTER_NEAREST)
    depth = cv2.distanceTransform(np.pad(small, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return box[0] + int((x + 0.5) / scale), box[1] + int((y + 0.5) / scale)


def _write(canvas: Array, anchors: Sequence[tuple[Region, tuple[int, int]]], letter: int) -> Array:
    """Return the canvas with each region's label at its anchor, or near it if another label is in the way.

    A label that would lie outside its region is left out.
    """
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=letter)
    taken: list[Box] = []
    for region, anchor in anchors:
        size = (round(draw.textlength(region.text, font)) + letter // 2, letter + letter // 2)
        box = _free_box(anchor, size, image.size, taken)
        if box is None or not _crop(region.mask, box).any():
            continue
        taken.append(box)
        left, top, right, bottom = box
        color = shade(region.color, 3)
        draw.rounded_rectangle((left, top, right - 1, bottom - 1), letter // 4, fill=color)
        middle = ((left + right) / 2, (top + bottom) / 2)
        brightness = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
        ink = (0, 0, 0) if brightness > 140 else (255, 255, 255)  # the one with more contrast
        draw.text(middle, region.text, fill=ink, font=font, anchor="mm")
    return np.array(image)


def _free_box(
    anchor: tuple[int, int], size: tuple[int, int], limits: tuple[int, int], taken: list[Box]
) -> Box | None:
    """Return a box of `size` (width, height) around the anchor, moved up or down past the boxes taken."""
    width, height = size
    left = max(0, min(anchor[0] - width // 2, limits[0] - width))
    centered, lowest = anchor[1] - height // 2, limits[1] - height
    for step in (0, 1, -1, 2, -2, 3, -3):
        top = max(0, min(centered + step * height, lowest))
        box = (left, top, left + width, top + height)
        if not any(
            left < other[2] and other[0] < box[2] and top < other[3] and other[1] < box[3] for other in taken
        ):
            return box
    return None
