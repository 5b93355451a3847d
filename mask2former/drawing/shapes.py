"""Shapes of masks: bounds, area, and the pixels inside a box, which are computed where they are looked at.

Shapes: `H, W` the image's sides in pixels, `h, w` those of a box.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from mask2former.structures import RunLengthMasks
from mask2former.utils.label_maps import Array
from mask2former.utils.memory import release_pages

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; the last two exclusive

STRIP_PIXELS = 2**20  # pixels of a large image that are worked on at a time


class Shape(NamedTuple):
    """Bounds of a mask (None if it is empty), its area in pixels, and its values (h, w) bool inside a box.

    A mask is computed where it is looked at: those of a large image and many objects would fill the memory.
    """

    box: Box | None
    area: int
    inside: Callable[[Box], Array]


def mask_shape(mask: Array) -> Shape:
    """Return the shape of a mask (H, W) bool."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1) if len(rows) else None
    return Shape(box, int(mask.sum()), lambda box: crop(mask, box))


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
    from scipy import ndimage  # a slow import, and instances need none of it

    highest = max(values, default=0)
    areas = np.zeros(highest + 3, int)
    boxes: dict[int, Box] = {}
    for rows in strips(labels):
        # 1 for label 0 and so on, since `find_objects` takes 0 for the background
        strip = np.clip(labels[rows], -1, highest + 1).astype(np.int32) + 1
        areas += np.bincount(strip.ravel(), minlength=len(areas))
        for value, found in enumerate(ndimage.find_objects(strip, highest + 1)):
            if found:
                boxes[value] = _joined(boxes.get(value), found, rows.start)
        release_pages(labels)

    def inside(value: int, box: Box) -> Array:
        return crop(labels, box) == value

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
        return crop(whole, box)

    return Shape((left, top, right, bottom), shape.area * scale**2, inside)


def enlarge(array: Array, scale: int) -> Array:
    """Repeat each pixel of (H, W, ...) `scale` times in both directions."""
    return array if scale == 1 else array.repeat(scale, axis=0).repeat(scale, axis=1)


def strips(array: Array) -> Iterator[slice]:
    """Yield the rows of strips of (H, W) that have about STRIP_PIXELS each."""
    height, step = len(array), max(1, STRIP_PIXELS // max(1, array.shape[1]))
    return (slice(top, min(top + step, height)) for top in range(0, height, step))


def _joined(box: Box | None, found: tuple[slice, slice], top: int) -> Box:
    """Return the box around another and what was found, whose rows count from `top`."""
    rows, columns = found
    new = columns.start, top + rows.start, columns.stop, top + rows.stop
    old = box or new
    return min(old[0], new[0]), min(old[1], new[1]), max(old[2], new[2]), max(old[3], new[3])


def crop(array: Array, box: Box) -> Array:
    """Return the pixels of (H, W, ...) inside a box, as a view; a box may exceed the image."""
    left, top, right, bottom = box
    return array[top:bottom, left:right]
