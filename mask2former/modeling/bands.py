"""Mask logits at output size, in bands of rows that fit a memory budget.

The logits cover the padded image. They are resized to it, cropped to the image and resized to the output
size, bilinearly each time, as the published models are evaluated. A band holds the numbers of the whole.

Letters: `n` maps, `h, w` their sides, `R` rows of a band, `H, W` the sides of what is made of them.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")  # of GPUs; of the CPU

Result = TypeVar("Result")


class Sizes(NamedTuple):
    """(height, width) in pixels of the padded image, the image in its top left corner, and the result."""

    padded: tuple[int, int]
    image: tuple[int, int]
    output: tuple[int, int]


def over_bands(work: Callable[[range], Result], sizes: Sizes, num_maps: int, budget: int) -> list[Result]:
    """Call `work` on consecutive ranges of output rows, with so many rows that its maps fit the budget.

    Where memory runs out all the same, the range is halved; a single row that does not fit is an error.
    `work` may be called again on rows it has seen.
    """
    step = rows_within(budget, sizes, num_maps)
    results: list[Result] = []
    start, height = 0, sizes.output[0]
    while start < height:
        rows = range(start, min(start + step, height))
        try:
            results.append(work(rows))
        except RuntimeError as error:
            if len(rows) == 1 or not any(words in str(error) for words in OUT_OF_MEMORY):
                raise
            step = (len(rows) + 1) // 2
        else:
            start = rows.stop
    return results


def rows_within(budget: int, sizes: Sizes, num_maps: int) -> int:
    """How many output rows of float32 maps fit `budget` bytes, at least one.

    A row is held about four times over, at the larger of the two widths: the rows above and below that are
    mixed, the mixture, and what is made of it. Where the output is smaller than the image, it takes several
    image rows.
    """
    width = max(sizes.padded[1], sizes.output[1])
    image_rows = max(1.0, sizes.image[0] / sizes.output[0])
    return max(1, int(budget / (4 * 4 * max(1, num_maps) * width * image_rows)))


def resize_band(mask_logits: Tensor, sizes: Sizes, rows: range) -> Tensor:
    """Those rows, (n, R, W), of mask logits (n, h, w) at output size."""
    needed = source_rows(rows, sizes.output[0], sizes.image[0])
    return resize_rows(image_band(mask_logits, sizes, needed), needed.start, sizes.image, sizes.output, rows)


def image_band(mask_logits: Tensor, sizes: Sizes, rows: range) -> Tensor:
    """Those rows of mask logits resized to the padded image and cropped to the image."""
    whole = (mask_logits.shape[1], mask_logits.shape[2])
    return resize_rows(mask_logits, 0, whole, sizes.padded, rows)[..., : sizes.image[1]]


def resize_rows(
    maps: Tensor, first: int, size: tuple[int, int], new_size: tuple[int, int], rows: range
) -> Tensor:
    """Those rows, (n, R, W), of maps resized bilinearly from `size` to `new_size`.

    Args:
        maps: (n, r, w), the rows of the maps from number `first` on.
    """
    if size == new_size:
        return maps[:, rows.start - first : rows.stop - first]
    above, below, weight = row_neighbours(rows, new_size[0], size[0])
    mixed = torch.lerp(
        maps.index_select(1, (above - first).to(maps.device)),
        maps.index_select(1, (below - first).to(maps.device)),
        weight[:, None].to(maps.device),
    )
    return F.interpolate(mixed, size=new_size[1], mode="linear", align_corners=False)


def source_rows(rows: range, new_height: int, height: int) -> range:
    """The rows that `rows` of a map resized from `height` to `new_height` are made of."""
    above, below, _ = row_neighbours(rows, new_height, height)
    return range(int(above[0]), int(below[-1]) + 1)


def row_neighbours(rows: range, new_height: int, height: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each row of a resized map, the two rows it lies between and the weight (R,) of the lower.

    The arithmetic is that of `F.interpolate(align_corners=False)`, float32 included, so that a band lies
    exactly where it would in the whole.
    """
    scale = torch.tensor(height / new_height, dtype=torch.float32)
    position = torch.arange(rows.start, rows.stop, dtype=torch.float32)
    position = (scale * (position + 0.5) - 0.5).clamp(min=0)
    above = position.long()
    weight = position - above
    return above, (above + weight.ceil().long()).clamp(max=height - 1), weight
