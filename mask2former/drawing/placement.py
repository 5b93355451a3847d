"""Free places for the labels of regions: inside large ones, beside small ones, and apart from each other.

Places are tried on a grid of cells, each of which belongs to the smallest region in it. Cells have a fixed
share of the image's side, so that a large image takes no longer than a small one.

Shapes: `H, W` the image's sides in pixels, `h, w` those of the grid or a part of it in cells, `N` regions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from mask2former.drawing.shapes import Box, Shape
from mask2former.utils.label_maps import Array

MOST_COVERED = 0.3  # of a region, by all labels together
MOST_COVERED_BY_OTHERS = 0.15  # of a region, by each label beside another
ALIGNMENTS = (0.5, 0.0, 1.0)  # part of a label that lies before the point of the region that it is beside


class Grid:
    """Cells (h, w) of an image: the region that each belongs to, and whether a label takes it.

    Regions count from 1; 0 is none. `areas` and `covered` (N + 1,) are the cells of each, and those of them
    under labels.
    """

    def __init__(self, size: tuple[int, int], shapes: Sequence[Shape], cell: int) -> None:
        """Create the grid of an image of `size` (H, W), for shapes from large to small, none of them empty.

        `cell` is the side of a cell in pixels.
        """
        self.size, self.cell = size, cell
        self.owner = np.zeros([-(-side // cell) for side in size], np.int32)
        for number, shape in enumerate(shapes, start=1):
            assert shape.box
            left, top, right, bottom = cells = self._cells(shape.box)
            mask = shape.inside(self._pixels(cells))
            self.owner[top:bottom, left:right][_any_in_cells(mask, cell)] = number
        self.boxes = [self._cells(shape.box) for shape in shapes if shape.box]
        self.areas = np.bincount(self.owner.ravel(), minlength=len(shapes) + 1)
        self.covered = np.zeros_like(self.areas)
        self.taken = np.zeros(self.owner.shape, bool)

    def take(self, number: int, width: int, height: int, *, beside: bool) -> Box | None:
        """Take a place for a label of that size in pixels, inside region `number` or beside it.

        Return it, or None if each place is taken, too small, or leaves too little of a region.
        """
        if not self.areas[number] or height > self.size[0] or width > self.size[1]:
            return None
        places, limit = (self._beside, MOST_COVERED_BY_OTHERS) if beside else (self._inside, MOST_COVERED)
        for x, y in places(number, width, height):
            left = max(0, min(round(x), self.size[1] - width))
            top = max(0, min(round(y), self.size[0] - height))
            box = (left, top, left + width, top + height)
            if self._take(box, limit):
                return box
        return None

    def _take(self, box: Box, limit: float) -> bool:
        """Take the cells of a box in pixels if it covers at most the limit of each region; return whether."""
        left, top, right, bottom = self._cells(box)
        where = np.s_[top:bottom, left:right]
        if self.taken[where].any():
            return False
        more = np.bincount(self.owner[where].ravel(), minlength=len(self.areas))
        covered = self.covered + more
        if ((more > limit * self.areas) | (covered > MOST_COVERED * self.areas))[1:].any():
            return False
        self.covered, self.taken[where] = covered, True
        return True

    def _inside(self, number: int, width: int, height: int) -> Iterator[tuple[float, float]]:
        """Yield the place (left, top) in pixels deepest in the region, if a label lies in it alone."""
        left, top, right, bottom = self.boxes[number - 1]
        where = np.s_[top:bottom, left:right]
        free = np.pad((self.owner[where] == number) & ~self.taken[where], 1).view(np.uint8)
        sides = [-(-side // self.cell) + 1 for side in (height, width)]
        fits = cv2.erode(free, np.ones(sides, np.uint8), borderValue=0)
        if not fits.any():
            return
        depth = cv2.distanceTransform(free, cv2.DIST_L2, 3) * fits
        row, column = np.unravel_index(int(depth.argmax()), depth.shape)
        yield (left + column - 0.5) * self.cell - width / 2, (top + row - 0.5) * self.cell - height / 2

    def _beside(self, number: int, width: int, height: int) -> Iterator[tuple[float, float]]:
        """Yield places (left, top) in pixels that touch the region: above, below, to the right and left."""
        left, top, right, bottom = self.boxes[number - 1]
        rows, columns = np.nonzero(self.owner[top:bottom, left:right] == number)
        rows, columns = (rows + top) * self.cell, (columns + left) * self.cell
        above, below = rows.min(), rows.max()
        for edge, start in ((above, above - height), (below, below + self.cell)):
            middle = np.median(columns[rows == edge]) + self.cell / 2
            yield from ((middle - part * width, start) for part in ALIGNMENTS)
        first, last = columns.min(), columns.max()
        for edge, start in ((last, last + self.cell), (first, first - width)):
            middle = np.median(rows[columns == edge]) + self.cell / 2
            yield from ((start, middle - part * height) for part in ALIGNMENTS)

    def _cells(self, box: Box) -> Box:
        """Return the cells that a box in pixels touches."""
        left, top, right, bottom = box
        return left // self.cell, top // self.cell, -(-right // self.cell), -(-bottom // self.cell)

    def _pixels(self, cells: Box) -> Box:
        """Return the pixels of cells that lie in the image."""
        left, top, right, bottom = (self.cell * side for side in cells)
        return left, top, min(right, self.size[1]), min(bottom, self.size[0])


def _any_in_cells(mask: Array, cell: int) -> Array:
    """Return which cells (h, w) of a mask, given in pixels from a cell's corner, have any pixel set."""
    for _ in range(2):  # the rows, then the columns
        cells = mask[::cell].copy()
        for first in range(1, cell):
            part = mask[first::cell]
            cells[: len(part)] |= part
        mask = cells.T
    return mask
