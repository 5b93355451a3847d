"""Legends: the classes of a drawing with their colors, share of the image and number of objects.

Shapes: `H, W` the image's sides in pixels, `h, w` the legend's, `K` classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from mask2former.drawing.colors import BLACK, WHITE, Color
from mask2former.drawing.labels import LABEL_LENGTH, letter_font
from mask2former.drawing.regions import Region
from mask2former.utils.label_maps import Array
from mask2former.utils.messages import legible

ROW = 1.7  # height of a row, in letters
GAP = 0.8  # around columns, in letters


class Entry(NamedTuple):
    """Class in a legend: its color, the share of the image's pixels, and the number of its objects."""

    name: str
    color: Color
    share: float
    objects: int | None = None


def legend_entries(
    regions: Sequence[Region],
    names: Sequence[str],
    colors: Sequence[Color],
    size: tuple[int, int],
    *,
    counted: bool,
) -> list[Entry]:
    """Return the classes, of K `names` and `colors`, that the regions of an image of `size` (H, W) have.

    They come by decreasing share. A pixel counts for each region that it lies in. Regions are objects, which
    are counted, if `counted`.
    """
    areas, counts = np.zeros(len(names)), np.zeros(len(names), int)
    for region in regions:
        areas[region.class_id] += region.shape.area
        counts[region.class_id] += 1
    shares = areas / (size[0] * size[1])
    order = sorted(np.flatnonzero(counts).tolist(), key=lambda k: (-areas[k], k))
    return [Entry(names[k], colors[k], float(shares[k]), int(counts[k]) if counted else None) for k in order]


def draw_legend(entries: Sequence[Entry], letter: int, *, height: int | None = None) -> Array:
    """Return a legend (h, w, 3) uint8 RGB, black on white, with letters of a height in pixels.

    Entries that `height`, in pixels, has no room for go to further columns; by default there is one column.
    """
    row, gap = round(ROW * letter), round(GAP * letter)
    rows = len(entries) if height is None else max(1, (height - 2 * gap) // row)
    parts = [entries[i : i + rows] for i in range(0, len(entries), max(1, rows))]
    columns = [_column(part, letter, row) for part in parts]
    width = gap + sum(column.width + gap for column in columns)
    canvas = Image.new("RGB", (width, height or 2 * gap + row * rows), WHITE)
    left = gap
    for column in columns:
        canvas.paste(column, (left, gap))
        left += column.width + gap
    return np.asarray(canvas)


def _column(entries: Sequence[Entry], letter: int, row: int) -> Image.Image:
    """Return the lines of entries, each `row` pixels high: a field of the color, name, number and share."""
    font = letter_font(letter)
    texts = [[legible(entry.name, LABEL_LENGTH), *_figures(entry)] for entry in entries]
    widths = [round(max(map(font.getlength, cells))) for cells in zip(*texts, strict=True)]
    rights = np.cumsum([2 * letter + widths[0], *(letter + width for width in widths[1:])]).tolist()
    image = Image.new("RGB", (rights[-1] + 1, row * len(entries)), WHITE)
    draw = ImageDraw.Draw(image)
    for number, (entry, cells) in enumerate(zip(entries, texts, strict=True)):
        middle = number * row + row / 2
        field = (0, round(middle - letter / 2), round(1.4 * letter), round(middle + letter / 2))
        draw.rectangle(field, fill=entry.color, outline=BLACK, width=max(1, letter // 16))
        draw.text((2 * letter, middle), cells[0], fill=BLACK, font=font, anchor="lm")
        for right, text in zip(rights[1:], cells[1:], strict=True):
            draw.text((right, middle), text, fill=BLACK, font=font, anchor="rm")
    return image


def _figures(entry: Entry) -> list[str]:
    share = "<0.1%" if entry.share < 0.0005 else f"{entry.share:.1%}"
    return [share] if entry.objects is None else [str(entry.objects), share]
