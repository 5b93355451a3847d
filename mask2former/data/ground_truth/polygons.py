"""Polygons as masks of a view: moved to where the view shows them, then drawn as pycocotools draws them.

That is the order of the published mappers: borders stay smooth however much the image is enlarged. Drawing
is done in the polygons' bounding box alone. pycocotools rounds corners to fifths of a pixel before it walks
along the borders; since that is done here first, whole pixels can be taken off without changing the result.

Shapes: `P` corners of a polygon, `h, w` the view's sides, `b, d` those of a bounding box, in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from mask2former.data.ground_truth.geometry import Axis, View

FIFTHS = 5
FAR = 100  # in sides of the image: coordinates beyond that would take pycocotools memory without end


class Patch(NamedTuple):
    """The part `mask` (b, d) bool of a mask (h, w); elsewhere it is empty."""

    rows: slice
    cols: slice
    mask: np.ndarray

    @classmethod
    def whole(cls, mask: np.ndarray) -> Patch:
        """All of a mask."""
        return cls(slice(None), slice(None), mask)

    def paste(self, canvas: np.ndarray) -> None:
        """Write it into an empty mask (h, w)."""
        canvas[self.rows, self.cols] = self.mask


def is_polygon(points: Any) -> bool:
    """Whether it is a flat list or array x0, y0, x1, y1, x2, y2, ... of three points or more."""
    flat = points.ndim == 1 if isinstance(points, np.ndarray) else isinstance(points, list)
    return flat and len(points) >= 6 and len(points) % 2 == 0


def draw_polygons(polygons: Sequence[Any], view: View, size: tuple[int, int]) -> Patch:
    """The union of polygons x0, y0, x1, y1, ... in pixels of the image of `size` (H, W), seen by `view`.

    Raises:
        ValueError: no polygon, one of fewer than three points, or a point far outside or nowhere at all.
    """
    if not polygons or not all(map(is_polygon, polygons)):
        raise ValueError("a polygon is a list of at least three points x, y")
    corners = np.concatenate([np.asarray(points, dtype=np.float64) for points in polygons]).reshape(-1, 2)
    if not (np.abs(corners) <= FAR * max(size)).all():
        raise ValueError(f"a point lies outside of {FAR} times the image's side")
    x, cols = _placed(corners[:, 0], view.cols)
    y, rows = _placed(corners[:, 1], view.rows)
    height, width = rows.stop - rows.start, cols.stop - cols.start
    if height == 0 or width == 0:
        return Patch(rows, cols, np.zeros((height, width), dtype=bool))
    ends = np.cumsum([len(points) for points in polygons])[:-1]
    moved = np.split(np.stack([x, y], axis=1).ravel(), ends)
    mask = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(moved, height, width)))
    return Patch(rows, cols, cv2.transpose(mask.T).view(bool))  # from columns, as decoded, to rows


def _placed(coordinates: np.ndarray, axis: Axis) -> tuple[np.ndarray, slice]:
    """Coordinates (P,) of the original -> (P,) within the bounding interval, and that interval of the axis.

    What comes out, pycocotools rounds to the fifths that it would have made of coordinates within `visible`.
    """
    visible = axis.visible
    fifths = np.trunc((axis.scale * coordinates + (axis.shift - visible.start)) * FIFTHS + 0.5)
    low = max(0, int(fifths.min() // FIFTHS))
    high = max(low, min(visible.stop - visible.start, int(fifths.max() // FIFTHS) + 1))
    fifths -= low * FIFTHS
    fifths -= fifths < 0  # the cast to an integer rounds towards zero
    return fifths / FIFTHS, slice(visible.start + low, visible.start + high)
