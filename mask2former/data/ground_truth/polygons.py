"""Rasterization of polygons: corners are mapped to the augmented image first, then drawn as pycocotools does.

The published mappers use this order: borders stay smooth however much an image is enlarged. Only the bounding
box of the polygons is drawn. pycocotools rounds corners to fifths of a pixel before it walks along the
borders. Here they are rounded first, so that subtracting whole pixels does not change corners; a pixel can
still differ where a border passes exactly between two pixels.

Shapes: `P` corners of a polygon, `h, w` the augmented image's sides, `b, d` those of a bounding box, in
pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from mask2former.data.ground_truth.geometry import AxisGeometry, Geometry
from mask2former.utils.coco_masks import check_points, is_polygon

FIFTHS = 5


class Patch(NamedTuple):
    """The part `mask` (b, d) bool of a mask (h, w) that is empty elsewhere."""

    rows: slice
    cols: slice
    mask: np.ndarray

    @classmethod
    def whole(cls, mask: np.ndarray) -> Patch:
        """Return a patch that covers the whole mask."""
        return cls(slice(None), slice(None), mask)

    def paste(self, canvas: np.ndarray) -> None:
        """Write the patch into an empty mask (h, w)."""
        canvas[self.rows, self.cols] = self.mask


def draw_polygons(polygons: Sequence[Any], geometry: Geometry, size: tuple[int, int]) -> Patch:
    """Draw the union of polygons x0, y0, x1, y1, ... in pixels of an image of `size` (H, W).

    Raises:
        ValueError: there is no polygon, one has fewer than three points, or a point is far outside or not
            finite.
    """
    if not polygons or not all(map(is_polygon, polygons)):
        raise ValueError("a polygon is a list of at least three points x, y")
    corners = check_points(polygons, size)
    x, cols = _map_coordinates(corners[:, 0], geometry.cols)
    y, rows = _map_coordinates(corners[:, 1], geometry.rows)
    height, width = rows.stop - rows.start, cols.stop - cols.start
    if height == 0 or width == 0:
        return Patch(rows, cols, np.zeros((height, width), dtype=bool))
    ends = np.cumsum([len(points) for points in polygons])[:-1]
    moved = np.split(np.stack([x, y], axis=1).ravel(), ends)
    mask = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(moved, height, width)))
    return Patch(rows, cols, cv2.transpose(mask.T).view(bool))  # decoded in column order


def _map_coordinates(coordinates: np.ndarray, axis: AxisGeometry) -> tuple[np.ndarray, slice]:
    """Return coordinates (P,) relative to their bounding interval, and that interval of the axis.

    pycocotools rounds them to the same fifths as coordinates relative to the visible part of the axis.
    """
    visible = axis.visible
    fifths = np.trunc((axis.scale * coordinates + (axis.shift - visible.start)) * FIFTHS + 0.5)
    low = max(0, int(fifths.min() // FIFTHS))
    high = max(low, min(visible.stop - visible.start, int(fifths.max() // FIFTHS) + 1))
    fifths -= low * FIFTHS
    fifths -= fifths < 0  # the cast to an integer rounds towards zero
    return fifths / FIFTHS, slice(visible.start + low, visible.start + high)
