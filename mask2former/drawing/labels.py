"""Labels of regions, placed so that they cover neither each other nor much of any region.

Places are tried on a grid of cells, a few to the height of a letter, in which each cell belongs to the
smallest region in it. Its size does not depend on the image's.

Shapes: `H, W` the image's sides in pixels, `h, w` the grid's sides in cells.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mask2former.drawing.colors import WHITE, darkened
from mask2former.drawing.regions import Region
from mask2former.drawing.shapes import Box
from mask2former.utils.label_maps import Array
from mask2former.utils.messages import legible

MIN_LETTER = 11  # height of letters in pixels
LETTERS_PER_SIDE = 50  # letters that fit along the image's side
SMALLER = 0.75  # height of letters where labels are crowded, relative to the others
LETTERS_PER_LINE = 12  # widths of the line around a label that make the height of a letter
CELLS_PER_LETTER = 4
MOST_COVERED = 0.25  # of a region, by all labels together
LABEL_LENGTH = 60  # characters
SHORT_LENGTH = 6  # characters of a name that is cut off


class Label(NamedTuple):
    """Text in a box of the image, with the height of its letters in pixels."""

    region: Region
    text: str
    letter: int
    box: Box


def letter_height(size: tuple[int, int]) -> int:
    """Return the height of letters in pixels for an image of `size` (H, W)."""
    return max(MIN_LETTER, round((size[0] * size[1]) ** 0.5 / LETTERS_PER_SIDE))


def write_labels(canvas: Array, regions: Sequence[Region]) -> None:
    """Write the labels of regions, whose masks are not empty, on an image (H, W, 3) uint8 RGB."""
    for label in place_labels(canvas.shape[:2], regions):
        _write(canvas, label)


def place_labels(size: tuple[int, int], regions: Sequence[Region]) -> list[Label]:
    """Return the labels for which there is a place in an image of `size` (H, W), large regions first.

    They do not overlap, lie inside the image, and together cover at most MOST_COVERED of a region's cells. A
    label without a place is made smaller, loses its note, is cut off, and is left out at last.
    """
    letter = letter_height(size)
    regions = sorted(regions, key=lambda region: -region.shape.area)
    grid = Grid.of(size, regions, max(1, letter // CELLS_PER_LETTER))
    labels = []
    for number, region in enumerate(regions, start=1):
        if region.shape.area < (letter / 2) ** 2:
            break
        forms = _forms(region, letter)
        if label := next(filter(None, (grid.placed(number, region, *form) for form in forms)), None):
            labels.append(label)
    return labels


def _forms(region: Region, letter: int) -> dict[tuple[str, int], None]:
    """Return the texts and letter heights to try for a region's label, the best first."""
    name = legible(region.name, LABEL_LENGTH)
    full = legible(f"{region.name} {region.note}", LABEL_LENGTH) if region.note else name
    short = name if len(name) <= SHORT_LENGTH + 1 else name[:SHORT_LENGTH] + "\N{HORIZONTAL ELLIPSIS}"
    small = max(MIN_LETTER, round(SMALLER * letter))
    return dict.fromkeys([(full, letter), (full, small), (name, letter), (name, small), (short, small)])


@dataclass
class Grid:
    """Cells (h, w) of an image: which region each belongs to, which are taken by labels.

    Regions count from 1, and 0 is no region. `areas` and `covered` are cells of each region.
    """

    size: tuple[int, int]
    cell: int
    owner: Array
    areas: Array
    covered: Array
    taken: Array

    @staticmethod
    def of(size: tuple[int, int], regions: Sequence[Region], cell: int) -> "Grid":
        """Return the grid of an image (H, W) with `regions` from large to small; `cell` is in pixels."""
        owner = np.zeros([-(-side // cell) for side in size], np.int32)
        for number, region in enumerate(regions, start=1):
            assert region.shape.box
            left, top, right, bottom = cells = _cells(region.shape.box, cell)
            mask = region.shape.inside(_pixels(cells, cell, size))
            owner[top:bottom, left:right][_any_in_cells(mask, cell)] = number
        areas = np.bincount(owner.ravel(), minlength=len(regions) + 1)
        return Grid(size, cell, owner, areas, np.zeros_like(areas), np.zeros(owner.shape, bool))

    def placed(self, number: int, region: Region, text: str, letter: int) -> Label | None:
        """Return the label of a region at its best free place, which is taken from now on; None if full."""
        width, height = round(_font(letter).getlength(text)) + letter // 2, letter + letter // 2
        for left, top in self._places(number, width, height):
            left = max(0, min(left, self.size[1] - width))
            top = max(0, min(top, self.size[0] - height))
            box = (left, top, left + width, top + height)
            if self._take(box):
                return Label(region, text, letter, box)
        return None

    def _take(self, box: Box) -> bool:
        """Take the cells of a box if they are free and no region loses too many; return whether it did."""
        if box[2] > self.size[1] or box[3] > self.size[0]:
            return False
        left, top, right, bottom = _cells(box, self.cell)
        where = np.s_[top:bottom, left:right]
        if self.taken[where].any():
            return False
        covered = self.covered + np.bincount(self.owner[where].ravel(), minlength=len(self.areas))
        if (covered > MOST_COVERED * self.areas)[1:].any():
            return False
        self.covered, self.taken[where] = covered, True
        return True

    def _places(self, number: int, width: int, height: int) -> Iterator[tuple[int, int]]:
        """Yield left and top of places to try for a label, in pixels: inside the region, then beside it."""
        own = self.owner == number
        if not own.any():
            return
        yield self._inside(own, width, height)
        rows, columns = np.nonzero(own)
        sides = (
            (rows.min(), columns[rows == rows.min()], -height),  # above
            (rows.max() + 1, columns[rows == rows.max()], 0),  # below
        )
        for row, touching, shift in sides:
            for part in (0.5, 0.0, 1.0):
                yield round(_middle(touching) * self.cell - part * width), int(row) * self.cell + shift
        sides = (
            (columns.max() + 1, rows[columns == columns.max()], 0),  # right
            (columns.min(), rows[columns == columns.min()], -width),  # left
        )
        for column, touching, shift in sides:
            for part in (0.5, 0.0, 1.0):
                yield int(column) * self.cell + shift, round(_middle(touching) * self.cell - part * height)

    def _inside(self, own: Array, width: int, height: int) -> tuple[int, int]:
        """Return the place deepest inside a region (h, w) among those where a label covers it alone."""
        free = np.pad((own & ~self.taken).view(np.uint8), 1)
        depth = cv2.distanceTransform(free, cv2.DIST_L2, 3)
        sides = [-(-side // self.cell) + 1 for side in (width, height)]
        fits = cv2.erode(free, np.ones(sides[::-1], np.uint8), borderValue=0)
        if fits.any():
            depth = depth * fits
        y, x = np.unravel_index(int(depth.argmax()), depth.shape)
        return round((x - 0.5) * self.cell - width / 2), round((y - 0.5) * self.cell - height / 2)


def _cells(box: Box, cell: int) -> Box:
    """Return the cells that a box in pixels touches."""
    left, top, right, bottom = box
    return left // cell, top // cell, -(-right // cell), -(-bottom // cell)


def _pixels(cells: Box, cell: int, size: tuple[int, int]) -> Box:
    """Return the pixels of cells that lie inside an image (H, W)."""
    left, top, right, bottom = (cell * side for side in cells)
    return left, top, min(right, size[1]), min(bottom, size[0])


def _any_in_cells(mask: Array, cell: int) -> Array:
    """Return which cells of a mask, given in pixels, have any pixel set."""
    rows = np.logical_or.reduceat(mask, np.arange(0, mask.shape[0], cell), axis=0)
    return np.logical_or.reduceat(rows, np.arange(0, mask.shape[1], cell), axis=1)


def _middle(positions: Array) -> float:
    return float(positions[len(positions) // 2]) + 0.5


@cache
def _font(letter: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=letter)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _write(canvas: Array, label: Label) -> None:
    """Write a label on a rounded rectangle of its region's color; its surroundings alone are copied."""
    left, top, right, bottom = label.box
    patch = canvas[top:bottom, left:right]
    image = Image.fromarray(np.ascontiguousarray(patch))
    draw = ImageDraw.Draw(image)
    height, width = patch.shape[:2]
    edge, color = (0, 0, width - 1, height - 1), label.region.color
    line = max(1, label.letter // LETTERS_PER_LINE)
    draw.rounded_rectangle(edge, label.letter // 4, fill=darkened(color), outline=color, width=line)
    draw.text((width / 2, height / 2), label.text, fill=WHITE, font=_font(label.letter), anchor="mm")
    patch[:] = np.asarray(image)
