"""Overlays of images that are larger than memory, drawn window by window.

The image, the maps that the regions are of, and the drawing lie in files (`utils.memory.new_array`).

Shapes: `H, W` the image's sides in pixels.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from math import ceil

import numpy as np

from mask2former.drawing.labels import place_labels, write_label
from mask2former.drawing.overlay import LINES_PER_IMAGE, paint_regions
from mask2former.drawing.regions import Region
from mask2former.drawing.shapes import Box, Shape
from mask2former.utils.label_maps import Array
from mask2former.utils.memory import new_array, release_pages

WINDOW = 2048  # pixels of a side
LABELED_SIDE = 2048  # places for labels are looked for in an image of about this side


def draw_large(image: Array, regions: Sequence[Region], maps: Sequence[Array] = ()) -> Array:
    """Return the image (H, W, 3) uint8 RGB with the regions tinted, outlined and labeled, as `draw_regions`.

    `maps` are the arrays that the regions' masks are read from.
    """
    canvas = new_array(image.shape, np.uint8)
    size = image.shape[0], image.shape[1]
    line = (size[0] * size[1]) ** 0.5 / LINES_PER_IMAGE
    margin = ceil(line) + 1
    for window in _windows((0, 0, size[1], size[0])):
        left, top, right, bottom = window
        around = max(0, left - margin), max(0, top - margin), right + margin, bottom + margin
        part = image[around[1] : around[3], around[0] : around[2]].copy()
        paint_regions(part, [_moved(region, around) for region in regions if _meets(region, around)], line)
        y, x = top - around[1], left - around[0]
        canvas[top:bottom, left:right] = part[y : y + bottom - top, x : x + right - left]
        for array in (canvas, image, *maps):
            release_pages(array)
    _write_labels(canvas, regions, maps)
    return canvas


def _windows(box: Box) -> Iterator[Box]:
    """Yield the parts of a box, row by row."""
    left, top, right, bottom = box
    for y, x in product(range(top, bottom, WINDOW), range(left, right, WINDOW)):
        yield x, y, min(x + WINDOW, right), min(y + WINDOW, bottom)


def _meets(region: Region, window: Box) -> bool:
    box = region.shape.box
    return box is not None and all(
        box[side] < window[side + 2] and window[side] < box[side + 2] for side in (0, 1)
    )


def _moved(region: Region, window: Box) -> Region:
    """Return the part of a region inside a window, with places in the window."""
    assert region.shape.box
    left, top, right, bottom = region.shape.box
    x, y = window[:2]
    box = max(left - x, 0), max(top - y, 0), min(right, window[2]) - x, min(bottom, window[3]) - y

    def inside(part: Box) -> Array:
        return region.shape.inside((part[0] + x, part[1] + y, part[2] + x, part[3] + y))

    return region._replace(shape=Shape(box, region.shape.area, inside))


def _write_labels(canvas: Array, regions: Sequence[Region], maps: Sequence[Array]) -> None:
    """Write the labels that fit into a reduced image, enlarged."""
    factor = ceil(max(canvas.shape[:2]) / LABELED_SIDE)
    small = [reduced for region in regions if (reduced := _reduced(region, factor, maps)).shape.box]
    size = ceil(canvas.shape[0] / factor), ceil(canvas.shape[1] / factor)
    for label in place_labels(size, small):
        box = tuple(factor * side for side in label.box)
        write_label(canvas, label._replace(letter=factor * label.letter, box=box))
    release_pages(canvas)


def _reduced(region: Region, factor: int, maps: Sequence[Array]) -> Region:
    """Return a region of every `factor`-th pixel in both directions."""
    shape = region.shape
    if not shape.box:
        return region
    left, top, right, bottom = (ceil(side / factor) for side in shape.box)
    if left >= right or top >= bottom:
        return region._replace(shape=shape._replace(box=None))
    mask = np.zeros((bottom - top, right - left), bool)
    step = WINDOW // factor
    for y, x in product(range(0, len(mask), step), range(0, mask.shape[1], step)):
        rows, columns = range(bottom - top)[y : y + step], range(right - left)[x : x + step]
        part = (
            (left + columns.start) * factor,
            (top + rows.start) * factor,
            (left + columns.stop - 1) * factor + 1,
            (top + rows.stop - 1) * factor + 1,
        )
        mask[rows.start : rows.stop, columns.start : columns.stop] = shape.inside(part)[::factor, ::factor]
        for array in maps:
            release_pages(array)

    def inside(box: Box) -> Array:
        whole = np.zeros((max(bottom, box[3]), max(right, box[2])), bool)
        whole[top:bottom, left:right] = mask
        return whole[box[1] : box[3], box[0] : box[2]]

    box = (left, top, right, bottom) if mask.any() else None
    return region._replace(shape=Shape(box, int(mask.sum()), inside))
