"""Visualization: results drawn over their image, with a color for each class, outlines and names.

A class has the same color in every image; instances of one class are shades of it. Line widths and letter
sizes follow the image's size, so that labels are legible at 128 pixels and at 4000. No display is needed.

Shapes: `H, W` the image's sides in pixels, `K` classes.
"""

import colorsys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from mask2former.structures import Instances, RunLengthMasks
from mask2former.utils.label_maps import Array
from mask2former.utils.messages import legible

Color = tuple[int, int, int]
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; the last two exclusive

OPACITY = 0.5
GOLDEN_RATIO = 0.618034
MIN_LETTER = 10  # height of letters in pixels
LABEL_LENGTH = 60  # characters of a label
LETTERS_PER_SIDE = 45  # letters that fit along the image's side
SHADES = (1.0, 0.75, 1.25, 0.6, 1.4)  # brightness of the first, second, ... instance of a class
LEGIBLE_SIDE = 512  # pixels; smaller images are enlarged by a whole factor, up to this side
SEARCH_SIDE = 256  # masks are shrunk to this side to find the place for a label
STRIP_PIXELS = 2**20  # pixels of a large image that are worked on at a time


class Shape(NamedTuple):
    """Bounds of a mask (None if it is empty), its area in pixels, and its values (h, w) bool inside a box.

    A mask is computed where it is looked at: those of a large image and many objects would fill the memory.
    """

    box: Box | None
    area: int
    inside: Callable[[Box], Array]


class Region(NamedTuple):
    """Part of an image: its shape, its color, and its label."""

    shape: Shape
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


def mask_shape(mask: Array) -> Shape:
    """Return the shape of a mask (H, W) bool."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1) if len(rows) else None
    return Shape(box, int(mask.sum()), lambda box: _crop(mask, box))


def run_length_shapes(masks: RunLengthMasks) -> list[Shape]:
    """Return the shape of each mask."""
    boxes = [tuple(box) if box[2] else None for box in masks.boxes().int().tolist()]

    def inside(number: int, box: Box) -> Array:
        left, top, right, bottom = box
        return masks.columns(number, left, min(right, masks.size[1]))[top:bottom].cpu().numpy()

    areas = masks.areas().tolist()
    return [Shape(boxes[i], areas[i], partial(inside, i)) for i in range(len(masks))]


def label_shapes(labels: Array, values: Sequence[int]) -> list[Shape]:
    """Return the shape of each of the `values`, none negative, in a label map (H, W)."""
    highest = max(values, default=0)
    areas = np.zeros(highest + 3, int)
    boxes: dict[int, Box] = {}
    for rows in _strips(labels):
        # 1 for label 0 and so on, since `find_objects` takes 0 for the background
        strip = np.clip(labels[rows], -1, highest + 1).astype(np.int32) + 1
        areas += np.bincount(strip.ravel(), minlength=len(areas))
        for value, found in enumerate(ndimage.find_objects(strip, highest + 1)):
            if found:
                boxes[value] = _joined(boxes.get(value), found, rows.start)

    def inside(value: int, box: Box) -> Array:
        return _crop(labels, box) == value

    return [Shape(boxes.get(k), int(areas[k + 1]), partial(inside, k)) for k in values]


def enlarged(shape: Shape, scale: int) -> Shape:
    """Return the shape in an image whose pixels are repeated `scale` times in both directions."""
    if scale == 1 or not shape.box:
        return shape
    left, top, right, bottom = (scale * side for side in shape.box)
    mask = enlarge(shape.inside(shape.box), scale)

    def inside(box: Box) -> Array:
        whole = np.zeros((max(bottom, box[3]), max(right, box[2])), bool)
        whole[top:bottom, left:right] = mask
        return _crop(whole, box)

    return Shape((left, top, right, bottom), shape.area * scale**2, inside)


def semantic_regions(labels: Array, names: Sequence[str], colors: Sequence[Color]) -> list[Region]:
    """Return one region per class in the label map (H, W); labels from K on are ignored."""
    shapes = label_shapes(labels, range(len(names)))
    return [Region(shape, colors[k], names[k]) for k, shape in enumerate(shapes) if shape.area]


def panoptic_regions(
    ids: Array, segments: Iterable[Mapping[str, Any]], names: Sequence[str], colors: Sequence[Color]
) -> list[Region]:
    """Return one region per segment `{id, category_id}` of the id map (H, W)."""
    segments = list(segments)
    shapes = label_shapes(ids, [segment["id"] for segment in segments])
    classes = [segment["category_id"] for segment in segments]
    return shape_regions(shapes, classes, names, colors, largest_first=False)


def instance_regions(instances: Instances, names: Sequence[str], colors: Sequence[Color]) -> list[Region]:
    """Return one region per instance, with its score in the label, the largest first."""
    masks = instances.pred_masks
    is_coded = isinstance(masks, RunLengthMasks)
    shapes = run_length_shapes(masks) if is_coded else [mask_shape(mask.cpu().numpy()) for mask in masks]
    suffixes = [f" {score:.0%}" for score in instances.scores.tolist()]
    return shape_regions(shapes, instances.pred_classes.tolist(), names, colors, suffixes)


def shape_regions(
    shapes: Iterable[Shape],
    classes: Sequence[int],
    names: Sequence[str],
    colors: Sequence[Color],
    suffixes: Sequence[str] = (),
    *,
    largest_first: bool = True,
) -> list[Region]:
    """Return one region per shape, the largest first, so that small ones are drawn on top.

    `suffixes` are appended to the names in the labels.
    """
    seen: Counter[int] = Counter()
    regions = []
    for shape, k, suffix in zip(shapes, classes, suffixes or [""] * len(classes), strict=True):
        regions.append(Region(shape, shade(colors[k], seen[k]), names[k] + suffix))
        seen[k] += 1
    return sorted(regions, key=lambda region: -region.shape.area) if largest_first else regions


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
    drawn = [(region, box) for region in regions if (box := region.shape.box)]
    for region, box in drawn:
        _tint(_crop(canvas, box), region.shape.inside(box), region.color)
    for region, box in drawn:
        mask = region.shape.inside(box).view(np.uint8)
        contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=box[:2])
        cv2.drawContours(canvas, contours, -1, region.color, max(1, letter // 8))
    labeled = [(region, box) for region, box in drawn if region.shape.area >= letter * letter]
    labeled.sort(key=lambda item: -item[0].shape.area)
    _write(canvas, [(region, _anchor(region.shape.inside(box), box)) for region, box in labeled], letter)
    return canvas


def _tint(image: Array, mask: Array, color: Color) -> None:
    """Mix the color into the image (h, w, 3) where the mask (h, w) is set."""
    mixed = np.arange(256)[:, None] * (1 - OPACITY) + np.array(color) * OPACITY  # of each value and channel
    table = mixed.astype(np.uint8)[None]
    for rows in _strips(mask):
        np.copyto(image[rows], cv2.LUT(image[rows], table), where=mask[rows, :, None])


def legible_scale(image: Array) -> int:
    """Return the factor by which to enlarge an image (H, W, 3) so that labels do not cover it."""
    return max(1, LEGIBLE_SIDE // max(image.shape[:2]))


def enlarge(array: Array, scale: int) -> Array:
    """Repeat each pixel of (H, W, ...) `scale` times in both directions."""
    return array if scale == 1 else array.repeat(scale, axis=0).repeat(scale, axis=1)


def _strips(array: Array) -> Iterator[slice]:
    """Yield the rows of strips of (H, W) that have about STRIP_PIXELS each."""
    height, step = len(array), max(1, STRIP_PIXELS // max(1, array.shape[1]))
    return (slice(top, min(top + step, height)) for top in range(0, height, step))


def _joined(box: Box | None, found: tuple[slice, slice], top: int) -> Box:
    """Return the box around another and what was found, whose rows count from `top`."""
    rows, columns = found
    new = columns.start, top + rows.start, columns.stop, top + rows.stop
    old = box or new
    return min(old[0], new[0]), min(old[1], new[1]), max(old[2], new[2]), max(old[3], new[3])


def _crop(array: Array, box: Box) -> Array:
    left, top, right, bottom = box
    return array[top:bottom, left:right]  # a view


def _anchor(mask: Array, box: Box) -> tuple[int, int]:
    """Return the pixel (x, y) deepest inside a mask, given inside its bounds `box`."""
    scale = min(1.0, SEARCH_SIDE / max(mask.shape))
    sides = [max(1, round(side * scale)) for side in mask.shape]
    small = cv2.resize(mask.astype(np.uint8), (sides[1], sides[0]), interpolation=cv2.INTER_NEAREST)
    depth = cv2.distanceTransform(np.pad(small, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return box[0] + int((x + 0.5) / scale), box[1] + int((y + 0.5) / scale)


def _write(canvas: Array, anchors: Sequence[tuple[Region, tuple[int, int]]], letter: int) -> None:
    """Write each region's label at its anchor, or near it if another label is in the way.

    A label that would lie outside its region is left out.
    """
    font = ImageFont.load_default(size=letter)
    ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    limits = canvas.shape[1], canvas.shape[0]
    taken: list[Box] = []
    for region, anchor in anchors:
        text = legible(region.text, LABEL_LENGTH)
        size = (round(ruler.textlength(text, font)) + letter // 2, letter + letter // 2)
        box = _free_box(anchor, size, limits, taken)
        if box is not None and region.shape.inside(box).any():
            taken.append(box)
            _write_label(canvas, box, text, shade(region.color, 3), letter)


def _write_label(canvas: Array, box: Box, text: str, color: Color, letter: int) -> None:
    """Write a text on a rounded rectangle in the box; only its surroundings are copied to an image."""
    left, top, right, bottom = box
    x, y = max(0, left - letter), max(0, top - letter)
    patch = canvas[y : bottom + letter, x : right + letter]
    image = Image.fromarray(np.ascontiguousarray(patch))
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle((left - x, top - y, right - 1 - x, bottom - 1 - y), letter // 4, fill=color)
    middle = ((left + right) / 2 - x, (top + bottom) / 2 - y)
    brightness = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    ink = (0, 0, 0) if brightness > 140 else (255, 255, 255)  # the one with more contrast
    draw.text(middle, text, fill=ink, font=ImageFont.load_default(size=letter), anchor="mm")
    patch[:] = np.asarray(image)


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
