"""Semantic segmentation: how much each class claims each pixel, or which class claims it most.

A class's score is the sum over queries of class times mask probability, of mask logits at output size; a
model of semantic segmentation alone may be evaluated with scores at the image's size instead, which are then
resized themselves.

Shapes: `Q` queries, `K` classes, `k` those asked for, `h, w` the sides of the mask logits, `R, C` those of a
tile, `H, W` the output's in pixels.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from mask2former.modeling.postprocessing.tiles import (
    COPIES,
    Sizes,
    Tile,
    contenders,
    over_tiles,
    resizing,
    tiles_within,
    to_output,
)


class Claims(NamedTuple):
    """What classes can score in a tile: bounds (K, ...) of it, and the scores (k, R, C) of classes (k,)."""

    lower: Tensor
    upper: Tensor
    scores: Callable[[Tensor], Tensor]


class View(NamedTuple):
    """What the network made of an image: class logits (Q, K+1) and mask logits (Q, h, w).

    A mirrored one saw left and right swapped; its scores are swapped back.
    """

    class_logits: Tensor
    mask_logits: Tensor
    sizes: Sizes
    mirrored: bool = False

    @property
    def num_classes(self) -> int:
        """K."""
        return self.class_logits.shape[1] - 1


def semantic_scores(
    class_logits: Tensor, mask_logits: Tensor, sizes: Sizes, *, resize_first: bool, memory_budget: int
) -> Tensor:
    """The scores (K, H, W) of class logits (Q, K+1) and mask logits (Q, h, w)."""
    view = View(class_logits, mask_logits, sizes)
    claims_in = claims_of(view, resize_first)
    scores = mask_logits.new_empty(view.num_classes, *sizes.output)
    classes = torch.arange(len(scores), device=scores.device)

    def fill(tile: Tile) -> None:
        tile.of(scores)[:] = claims_in(tile).scores(classes)

    over_tiles(fill, tiles_of([view], resize_first, memory_budget))
    return scores


def semantic_label_map(
    class_logits: Tensor, mask_logits: Tensor, sizes: Sizes, *, resize_first: bool, memory_budget: int
) -> Tensor:
    """The class of highest score of each pixel, (H, W) int32; classes that cannot win are left out early."""
    view = View(class_logits, mask_logits, sizes)
    return labels_of(claims_of(view, resize_first), [view], resize_first, memory_budget)


def labels_of(
    claims_in: Callable[[Tile], Claims], views: Sequence[View], resize_first: bool, memory_budget: int
) -> Tensor:
    """The class that claims each pixel most, (H, W) int32, of claims that are made of `views`."""
    labels = torch.empty(views[0].sizes.output, dtype=torch.int32, device=views[0].mask_logits.device)

    def fill(tile: Tile) -> None:
        claims = claims_in(tile)
        classes = contenders(claims.lower, claims.upper).nonzero()[:, 0]
        # The indices of `max` are those of `argmax`, and come several times as fast
        tile.of(labels)[:] = classes[claims.scores(classes).max(0).indices] if len(classes) > 1 else classes

    over_tiles(fill, tiles_of(views, resize_first, memory_budget))
    return labels


def tiles_of(views: Sequence[View], resize_first: bool, budget: int) -> list[Tile]:
    """Tiles for all masks and scores of a view, and for what those are made of, with its bounds.

    Views are worked on in turn; of the others in a tile only scores at their own size are held.
    """
    numbers = [_numbers_a_pixel(view, resize_first) for view in views]
    held = sum(numbers[1:]) / COPIES**2
    return tiles_within(budget, views[0].sizes.output, max(numbers) + held, views[0].mask_logits.device)


def _numbers_a_pixel(view: View, resize_first: bool) -> float:
    """How many maps of the output's size a view takes while it is worked on."""
    sizes = view.sizes
    height, width = view.mask_logits.shape[1:] if resize_first else sizes.image
    source = COPIES * height * width / (sizes.output[0] * sizes.output[1])
    return sum(view.class_logits.shape) * max(1.0, source)


def claims_of(view: View, resize_first: bool) -> Callable[[Tile], Claims]:
    """What classes can score in a tile of the output."""
    probabilities = view.class_logits.softmax(-1)[:, :-1].T.contiguous()  # (K, Q)
    make = _claims_of_logits if resize_first else _claims_of_scores
    claims_in = make(probabilities, view.mask_logits, view.sizes)
    return partial(_swapped, claims_in, view.sizes.output[1]) if view.mirrored else claims_in


def _swapped(claims_in: Callable[[Tile], Claims], width: int, tile: Tile) -> Claims:
    """The claims in a tile by a view that shows it mirrored."""
    lower, upper, scores = claims_in(tile.mirrored(width))
    return Claims(lower.flip(-1), upper.flip(-1), lambda some: scores(some).flip(-1))


def _claims_of_logits(classes: Tensor, mask_logits: Tensor, sizes: Sizes) -> Callable[[Tile], Claims]:
    """Scores are made of mask logits at output size; `classes` are probabilities (K, Q)."""
    whole = to_output(mask_logits, sizes)

    def claims(tile: Tile) -> Claims:
        source = whole.source(mask_logits, tile)
        lower, upper = (_scores(classes, bound.sigmoid()) for bound in whole.bounds(source))
        return Claims(
            lower, upper, lambda some: _scores(classes[some], whole.resize(source, tile).sigmoid_())
        )

    return claims


def _claims_of_scores(classes: Tensor, mask_logits: Tensor, sizes: Sizes) -> Callable[[Tile], Claims]:
    """Scores are made at the image's size, and resized; `classes` are probabilities (K, Q)."""
    shape, device = mask_logits.shape[1:], mask_logits.device
    to_image = resizing(shape, [(sizes.padded, sizes.image)], device)
    enlarged = resizing(sizes.image, [(sizes.output, sizes.output)], device)

    def claims(tile: Tile) -> Claims:
        part = enlarged.source_tile(tile)
        masks = to_image.resize(to_image.source(mask_logits, part), part)
        source = _scores(classes, masks.sigmoid_())
        return Claims(*enlarged.bounds(source), lambda some: enlarged.resize(source[some], tile))

    return claims


def _scores(classes: Tensor, masks: Tensor) -> Tensor:
    """Scores (k, R, C) of class probabilities (k, Q) and mask probabilities (Q, R, C)."""
    return (classes @ masks.flatten(1)).unflatten(1, masks.shape[1:])
