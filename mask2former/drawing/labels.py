"""Labels of regions, which cover neither each other nor much of any region.

Shapes: `H, W` the image's sides in pixels.
"""

import itertools
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mask2former.drawing.colors import WHITE, darkened
from mask2former.drawing.placement import Grid
from mask2former.drawing.regions import Region
from mask2former.drawing.shapes import Box
from mask2former.utils.label_maps import Array
from mask2former.utils.messages import legible

MIN_LETTER = 11  # height of letters in pixels
LETTERS_PER_SIDE = 50  # letters that fit along the image's side
SMALLER = 0.75  # height of letters where labels are crowded, relative to the others
LETTERS_PER_LINE = 12  # widths of the line around a label that make the height of a letter
CELLS_PER_LETTER = 4
LABEL_LENGTH = 60  # characters
SHORT_LENGTH = 6  # characters of a name that is cut off
Form = tuple[str, int]  # text, and height of its letters
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


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
        write_label(canvas, label)


def place_labels(size: tuple[int, int], regions: Sequence[Region]) -> list[Label]:
    """Return the labels for which there is a place in an image of `size` (H, W), by decreasing area.

    They lie inside the image and apart from each other, and cover little of any region. A label is inside its
    region, or else beside it; without a place it is made smaller and loses its note, is cut off, and is left
    out at last.
    """
    letter = letter_height(size)
    regions = sorted(regions, key=lambda region: -region.shape.area)
    grid = Grid(size, [region.shape for region in regions], max(1, letter // CELLS_PER_LETTER))
    found: dict[int, Label] = {}
    # Region after region, a label beside one would take the place inside another.
    for forms, beside in itertools.product((_whole_forms, _short_forms), (False, True)):
        for number, region in enumerate(regions, start=1):
            if number not in found and region.shape.area >= (letter / 2) ** 2:
                labels = (_placed(grid, number, region, form, beside) for form in forms(region, letter))
                found.update((number, label) for label in [next(filter(None, labels), None)] if label)
    return [found[number] for number in sorted(found)]


def _placed(grid: Grid, number: int, region: Region, form: Form, beside: bool) -> Label | None:
    text, letter = form
    width, height = round(_length(text, letter)) + letter // 2, letter + letter // 2
    box = grid.take(number, width, height, beside=beside)
    return Label(region, text, letter, box) if box else None


def _whole_forms(region: Region, letter: int) -> dict[Form, None]:
    """Return the texts and letter heights to try for a region's label, the best first."""
    marked = f"{region.mark}," if region.mark and region.note else region.mark
    full, name = _text(region.name, marked, region.note), _text(region.name, region.mark)
    small = _small(letter)
    return dict.fromkeys([(full, letter), (full, small), (name, letter), (name, small)])


def _short_forms(region: Region, letter: int) -> list[Form]:
    """Return the same with the name cut off."""
    name = _text(region.name)
    if len(name) <= SHORT_LENGTH + 1:
        return []
    return [(_text(name[:SHORT_LENGTH].rstrip() + ELLIPSIS, region.mark), _small(letter))]


def _text(*parts: str) -> str:
    return legible(" ".join(filter(None, parts)), LABEL_LENGTH)


def _small(letter: int) -> int:
    return max(MIN_LETTER, round(SMALLER * letter))


@lru_cache(maxsize=1000)
def _length(text: str, letter: int) -> float:
    return letter_font(letter).getlength(text)


@cache
def letter_font(letter: int) -> ImageFont.FreeTypeFont:
    """Return the font of drawings with letters of a height in pixels."""
    font = ImageFont.load_default(size=letter)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def write_label(canvas: Array, label: Label) -> None:
    """Write a label on a rounded rectangle of its region's color; its surroundings alone are copied."""
    left, top, right, bottom = label.box
    patch = canvas[top:bottom, left:right]
    image = Image.fromarray(np.ascontiguousarray(patch))
    draw = ImageDraw.Draw(image)
    height, width = patch.shape[:2]
    edge, color = (0, 0, width - 1, height - 1), label.region.color
    line = max(1, label.letter // LETTERS_PER_LINE)
    draw.rounded_rectangle(edge, label.letter // 4, fill=darkened(color), outline=color, width=line)
    draw.text((width / 2, height / 2), label.text, fill=WHITE, font=letter_font(label.letter), anchor="mm")
    patch[:] = np.asarray(image)
