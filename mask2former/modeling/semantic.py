"""Semantic segmentation: how much each class claims each pixel, or which class claims it most.

A class's score is the sum over queries of class times mask probability, of mask logits at output size; a
model of semantic segmentation alone may be evaluated with scores at the image's size instead, which are then
resized themselves.

Letters: `Q` queries, `K` classes, `k` those asked for, `h, w` the sides of the mask logits, `R, C` those of a
tile, `H, W` the output's in pixels.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mask2former.modeling.tiles import (
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


def semantic_scores(
    class_logits: Tensor, mask_logits: Tensor, sizes: Sizes, *, resize_first: bool, memory_budget: int
) -> Tensor:
    """The scores (K, H, W) of class logits (Q, K+1) and mask logits (Q, h, w)."""
    claims_in = _claims(class_logits, mask_logits, sizes, resize_first)
    scores = mask_logits.new_empty(class_logits.shape[1] - 1, *sizes.output)
    classes = torch.arange(len(scores), device=scores.device)

    def fill(tile: Tile) -> None:
        tile.of(scores)[:] = claims_in(tile).scores(classes)

    over_tiles(fill, _tiles(class_logits, mask_logits, sizes, resize_first, memory_budget))
    return scores


def semantic_label_map(
    class_logits: Tensor, mask_logits: Tensor, sizes: Sizes, *, resize_first: bool, memory_budget: int
) -> Tensor:
    """The class of highest score of each pixel, (H, W) int32; classes that cannot win are left out early."""
    claims_in = _claims(class_logits, mask_logits, sizes, resize_first)
    labels = torch.empty(sizes.output, dtype=torch.int32, device=mask_logits.device)

    def fill(tile: Tile) -> None:
        claims = claims_in(tile)
        classes = contenders(claims.lower, claims.upper).nonzero()[:, 0]
        # The indices of `max` are those of `argmax`, and come several times as fast
        tile.of(labels)[:] = classes[claims.scores(classes).max(0).indices] if len(classes) > 1 else classes

    over_tiles(fill, _tiles(class_logits, mask_logits, sizes, resize_first, memory_budget))
    return labels


def _tiles(
    class_logits: Tensor, mask_logits: Tensor, sizes: Sizes, resize_first: bool, budget: int
) -> list[Tile]:
    """Tiles for all masks and scores, and for what those are made of, with its bounds."""
    height, width = mask_logits.shape[1:] if resize_first else sizes.image
    source = COPIES * height * width / (sizes.output[0] * sizes.output[1])
    return tiles_within(budget, sizes.output, sum(class_logits.shape) * max(1.0, source), mask_logits.device)


def _claims(
    class_logits: Tensor, mask_logits: Tensor, sizes: Sizes, resize_first: bool
) -> Callable[[Tile], Claims]:
    """What classes can score in a tile of the output."""
    probabilities = class_logits.softmax(-1)[:, :-1].T.contiguous()  # (K, Q)
    make = _claims_of_logits if resize_first else _claims_of_scores
    return make(probabilities, mask_logits, sizes)


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
