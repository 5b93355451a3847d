"""Semantic segmentation of an image from several views of it: its sizes, and their mirror images.

Shapes: `K` classes, `H, W` the output's sides in pixels.
"""

from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor

from mask2former.modeling.postprocessing.semantic import Claims, View, claims_of, labels_of, tiles_of
from mask2former.modeling.postprocessing.tiles import Tile, over_tiles


def add_scores(total: Tensor, view: View, *, resize_first: bool, memory_budget: int) -> None:
    """Add a view's scores to `total` (K, H, W)."""
    claims_in = claims_of(view, resize_first)
    classes = torch.arange(len(total), device=total.device)

    def add(tile: Tile) -> None:
        tile.of(total).add_(claims_in(tile).scores(classes))

    over_tiles(add, tiles_of([view], resize_first, memory_budget))


def mean_label_map(views: Sequence[View], *, resize_first: bool, memory_budget: int) -> Tensor:
    """The class of highest mean score of each pixel, (H, W) int32."""
    sources = [claims_of(view, resize_first) for view in views]
    return labels_of(lambda tile: _summed(sources, tile), views, resize_first, memory_budget)


def _summed(sources: Sequence[Callable[[Tile], Claims]], tile: Tile) -> Claims:
    """What classes can score in all views together.

    The neighborhoods that views are bounded in differ, so each is bounded over the whole tile: (K, 1).
    """
    lower, upper, scores = zip(*(_over_the_tile(claims_in(tile)) for claims_in in sources), strict=True)
    return Claims(sum(lower), sum(upper), lambda some: reduce(Tensor.add_, (of(some) for of in scores)))


def _over_the_tile(claims: Claims) -> Claims:
    lower, upper = claims.lower.flatten(1), claims.upper.flatten(1)
    return Claims(lower.amin(1, keepdim=True), upper.amax(1, keepdim=True), claims.scores)
