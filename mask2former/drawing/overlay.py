"""Overlays: an image with its regions tinted, outlined and labeled. No display is needed.

Line widths and letter sizes follow the image's size, so that drawings look alike at 256 pixels and at 4000.

Shapes: `H, W` the image's sides in pixels, `h, w` those of a box.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from mask2former.drawing.colors import Color, casing
from mask2former.drawing.labels import write_labels
from mask2former.drawing.regions import Region
from mask2former.drawing.shapes import Box, crop, enlarge, enlarged, strips
from mask2former.utils.label_maps import Array

OPACITY = 0.5
LINES_PER_IMAGE = 300  # widths of an outline along the image's side
LINES_PER_REGION = 10  # the same for the side of a small region
LEGIBLE_SIDE = 512  # pixels; smaller images are enlarged by a whole factor, up to this side


def draw_regions(image: Array, regions: Sequence[Region], scale: int = 1) -> Array:
    """Return a copy of the image (H, W, 3) uint8 RGB with the regions tinted, outlined and labeled.

    It is (scale * H, scale * W, 3): the pixels are repeated, and lines and letters are as fine as before.

    An outline is two lines: the region's color inside of it, black or white around it. One of them contrasts
    with any image. A label without free space is shortened or left out.
    """
    canvas = image.copy() if scale == 1 else enlarge(image, scale)
    line = (canvas.shape[0] * canvas.shape[1]) ** 0.5 / LINES_PER_IMAGE
    regions = [region._replace(shape=enlarged(region.shape, scale)) for region in regions]
    paint_regions(canvas, regions, line)
    write_labels(canvas, [region for region in regions if region.shape.box])
    return canvas


def paint_regions(canvas: Array, regions: Sequence[Region], line: float) -> None:
    """Tint and outline regions in an image (H, W, 3); `line` is the width of outlines of large ones."""
    drawn = [(region, region.shape.box) for region in regions if region.shape.box]
    for region, box in drawn:
        _tint(crop(canvas, box), region.shape.inside(box), region.color)
    for region, box in drawn:
        width = round(min(line, region.shape.area**0.5 / LINES_PER_REGION))
        _outline(canvas, region, box, max(1, width))


def legible_scale(image: Array) -> int:
    """Return the factor by which to enlarge an image (H, W, 3) so that labels do not cover it."""
    return max(1, LEGIBLE_SIDE // max(image.shape[:2]))


def _tint(image: Array, mask: Array, color: Color) -> None:
    """Mix the color into the image (h, w, 3) where the mask (h, w) is set."""
    mixed = np.arange(256)[:, None] * (1 - OPACITY) + np.array(color) * OPACITY  # of each value and channel
    table, mask = mixed.astype(np.uint8)[None], mask.view(np.uint8)
    for rows in strips(mask):
        cv2.copyTo(cv2.LUT(image[rows], table), mask[rows], image[rows])


def _outline(canvas: Array, region: Region, box: Box, width: int) -> None:
    """Draw a line of the region's color inside its edge, and a thinner casing around it."""
    height, length = canvas.shape[:2]
    left, top, right, bottom = box
    left, top = max(0, left - width), max(0, top - width)
    right, bottom = min(length, right + width), min(height, bottom + width)
    image = canvas[top:bottom, left:right]
    mask = region.shape.inside((left, top, right, bottom)).view(np.uint8)
    inner, outer = (np.ones((2 * reach + 1,) * 2, np.uint8) for reach in (width, max(1, width // 2)))
    for rows in strips(mask):
        start = max(0, rows.start - width)
        part = mask[start : rows.stop + width]
        within = slice(rows.start - start, rows.stop - start)
        line = cv2.subtract(part, cv2.erode(part, inner))[within]
        around = cv2.subtract(cv2.dilate(part, outer), part)[within]
        for edge, color in ((around, casing(region.color)), (line, region.color)):
            filled = cv2.rectangle(np.empty_like(image[rows]), (0, 0), edge.shape[::-1], color, cv2.FILLED)
            cv2.copyTo(filled, edge, image[rows])
