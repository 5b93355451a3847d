"""Drawing results over their image: every class in a color of its own, regions outlined and named.

A class keeps its color in every image; instances of one class are shades of it. Sizes of lines and letters
follow the image's, so that a label can be read at 128 pixels as at 4000. Nothing here needs a display.

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

Array = np.ndarray[Any, np.dtype[Any]]
Color = tuple[int, int, int]
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; the last two exclusive

OPACITY = 0.5
GOLDEN_RATIO = 0.618034
MIN_LETTER = 10  # height of letters in pixels
LETTERS_A_SIDE = 45  # how many of them the image's side would hold
SHADES = (1.0, 0.75, 1.25, 0.6, 1.4)  # brightness of the first, second, ... instance of a class
LEGIBLE_SIDE = 512  # pixels; an image that fits in more than once is drawn enlarged
SEARCH_SIDE = 256  # masks are shrunk to this side to find the place for a label


class Region(NamedTuple):
    """A part of the image: its mask (H, W) bool, its color, and what to write on it."""

    mask: Array
    color: Color
    text: str


def class_colors(num_classes: int) -> list[Color]:
    """A color for each class id, the same for an id whatever their number; neighbors differ much."""
    hsv = (
        (k * GOLDEN_RATIO % 1, (0.9, 0.6, 0.75)[k % 3], (0.95, 0.85, 0.7)[k // 3 % 3])
        for k in range(num_classes)
    )
    return [_rgb(*colorsys.hsv_to_rgb(*color)) for color in hsv]


def _rgb(red: float, green: float, blue: float) -> Color:
    """Channels in [0, 1], those beyond it cut -> 0..255."""
    return tuple(round(255 * min(max(channel, 0.0), 1.0)) for channel in (red, green, blue))  # type: ignore[return-value]


def shade(color: Color, number: int) -> Color:
    """The color of a class's instance `number`, from 0."""
    factor = SHADES[number % len(SHADES)]
    return _rgb(*(channel / 255 * factor for channel in color))


def semantic_regions(labels: Array, names: Sequence[str], colors: Sequence[Color]) -> list[Region]:
    """One region for each class in the label map (H, W); labels beyond the K names are left out."""
    present = [k for k in np.unique(labels) if 0 <= k < len(names)]
    return [Region(labels == k, colors[k], names[k]) for k in present]


def panoptic_regions(
    ids: Array, segments: Iterable[Mapping[str, Any]], names: Sequence[str], colors: Sequence[Color]
) -> list[Region]:
    """One region for each segment `{id, category_id}` of the id map (H, W)."""
    seen: Counter[int] = Counter()
    regions = []
    for segment in segments:
        category = segment["category_id"]
        color = shade(colors[category], seen[category])
        regions.append(Region(ids == segment["id"], color, names[category]))
        seen[category] += 1
    return regions


def instance_regions(instances: Instances, names: Sequence[str], colors: Sequence[Color]) -> list[Region]:
    """One region for each instance, with its score; the largest first."""
    masks = (mask.cpu().numpy() for mask in instances.pred_masks)
    notes = [f" {score:.0%}" for score in instances.scores.tolist()]
    return mask_regions(masks, instances.pred_classes.tolist(), names, colors, notes)


def mask_regions(
    masks: Iterable[Array],
    classes: Sequence[int],
    names: Sequence[str],
    colors: Sequence[Color],
    notes: Sequence[str] | None = None,
) -> list[Region]:
    """One region for each mask (H, W) bool, the largest first, so that small ones lie on top.

    `notes` are what is written behind the names.
    """
    seen: Counter[int] = Counter()
    regions = []
    for mask, category, note in zip(masks, classes, notes or [""] * len(classes), strict=True):
        regions.append(Region(mask, shade(colors[category], seen[category]), names[category] + note))
        seen[category] += 1
    return sorted(regions, key=lambda region: -int(region.mask.sum()))


def result_regions(task: str, result: Any, names: Sequence[str], colors: Sequence[Color]) -> list[Region]:
    """The regions of what a model makes for a task.

    Args:
        task: "panoptic", whose `result` is (ids (H, W), segments); "instance": `Instances`; or "semantic": a
            label map (H, W).
        result: see there.
        names: of the K classes.
        colors: of the K classes.
    """
    draw: dict[str, Callable[..., list[Region]]] = {
        "panoptic": lambda segmented, *classes: panoptic_regions(*segmented, *classes),
        "instance": instance_regions,
        "semantic": semantic_regions,
    }
    return draw[task](result, names, colors)


def draw_regions(image: Array, regions: Sequence[Region]) -> Array:
    """The image (H, W, 3) uint8 RGB with the regions tinted, outlined and named; the input stays as it is.

    A region smaller than a letter, or without a free place for its name, is tinted and not named.
    """
    canvas = image.copy()
    letter = max(MIN_LETTER, round((image.shape[0] * image.shape[1]) ** 0.5 / LETTERS_A_SIDE))
    boxes = [_bounds(region.mask) for region in regions]
    drawn = [(region, box) for region, box in zip(regions, boxes, strict=True) if box]
    for region, box in drawn:
        _tint(canvas, region, box)
    for region, box in drawn:
        _outline(canvas, region, box, max(1, letter // 8))
    named = [(region, box) for region, box in drawn if region.mask.sum() >= letter * letter]
    named.sort(key=lambda item: -int(item[0].mask.sum()))
    return _write(canvas, [(region, _anchor(_cut(region.mask, box), box)) for region, box in named], letter)


def legible_scale(image: Array) -> int:
    """How many times an image (H, W, 3) is to be enlarged so that its labels leave something to see."""
    return max(1, LEGIBLE_SIDE // max(image.shape[:2]))


def enlarge(array: Array, scale: int) -> Array:
    """Each pixel of (H, W, ...) `scale` times in both directions."""
    return array.repeat(scale, axis=0).repeat(scale, axis=1)


def _bounds(mask: Array) -> Box | None:
    """The smallest box around a mask (H, W); None if it is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _cut(array: Array, box: Box) -> Array:
    """The part in the box, as a view."""
    left, top, right, bottom = box
    return array[top:bottom, left:right]


def _tint(canvas: Array, region: Region, box: Box) -> None:
    part, mask = _cut(canvas, box), _cut(region.mask, box)
    part[mask] = (part[mask] * (1 - OPACITY) + np.array(region.color) * OPACITY).astype(np.uint8)


def _outline(canvas: Array, region: Region, box: Box, width: int) -> None:
    mask = _cut(region.mask, box).astype(np.uint8)
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=box[:2])
    cv2.drawContours(canvas, contours, -1, region.color, width)


def _anchor(mask: Array, box: Box) -> tuple[int, int]:
    """The pixel (x, y) of the image that lies deepest within a mask, which is that of the box alone."""
    scale = min(1.0, SEARCH_SIDE / max(mask.shape))
    sides = [max(1, round(side * scale)) for side in mask.shape]
    small = cv2.resize(mask.astype(np.uint8), (sides[1], sides[0]), interpolation=cv2.INTER_NEAREST)
    depth = cv2.distanceTransform(np.pad(small, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return box[0] + int((x + 0.5) / scale), box[1] + int((y + 0.5) / scale)


def _write(canvas: Array, anchors: Sequence[tuple[Region, tuple[int, int]]], letter: int) -> Array:
    """The canvas with each region's text at its anchor, or near it where another text is in the way.

    A text that would have to leave its region is left out.
    """
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=letter)
    taken: list[Box] = []
    for region, anchor in anchors:
        size = (round(draw.textlength(region.text, font)) + letter // 2, letter + letter // 2)
        box = _free_box(anchor, size, image.size, taken)
        if box is None or not _cut(region.mask, box).any():
            continue
        taken.append(box)
        draw.rounded_rectangle(
            (box[0], box[1], box[2] - 1, box[3] - 1), letter // 4, fill=shade(region.color, 3)
        )
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        draw.text(middle, region.text, fill=_readable_on(shade(region.color, 3)), font=font, anchor="mm")
    return np.array(image)


def _free_box(
    anchor: tuple[int, int], size: tuple[int, int], limits: tuple[int, int], taken: list[Box]
) -> Box | None:
    """A box of `size` (width, height) around the anchor, moved up or down past the boxes in its way."""
    width, height = size
    left = max(0, min(anchor[0] - width // 2, limits[0] - width))
    centered, lowest = anchor[1] - height // 2, limits[1] - height
    tops = [max(0, min(centered + step * height, lowest)) for step in (0, 1, -1, 2, -2, 3, -3)]
    boxes = [(left, top, left + width, top + height) for top in tops]
    free = (box for box in boxes if not any(_overlap(box, other) for other in taken))
    return next(free, None)


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _readable_on(color: Color) -> Color:
    """Black or white, whichever stands out."""
    brightness = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    return (0, 0, 0) if brightness > 140 else (255, 255, 255)
