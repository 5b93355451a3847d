"""Semantic segmentation with test-time augmentation: the mean score over several views of an image.

A view is the image resized to one of several sizes, possibly mirrored left to right.

Shapes: `K` classes, `H, W` the output's sides in pixels.
"""

from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import chain
from math import prod
from typing import Any

import torch
from torch import Tensor

from mask2former.modeling.postprocessing.inference import InferenceOptions, exact_float32
from mask2former.modeling.postprocessing.semantic import (
    Scorer,
    TileScores,
    best_classes,
    score_tiles,
    tile_scorer,
)
from mask2former.modeling.postprocessing.tiles import Tile, over_tiles
from mask2former.modeling.predictions import ImagePrediction


def post_process_views(
    views: Iterator[ImagePrediction],
    pixels: Sequence[int],
    options: InferenceOptions,
    *,
    compact: bool = False,
) -> dict[str, Any]:
    """Return "label_map" (H, W) if `compact`, else "sem_seg" (K, H, W), averaged over an image's views.

    Views, at least one, are predicted one by one; `pixels` are their numbers of pixels. Either the logits of
    all views are held or the sum of their scores, whichever is smaller: at most K numbers per pixel, and with
    a compact result often far fewer. The logits of the current view and the memory budget come on top.
    """
    first = next(views)
    device, logits = first.mask_logits.device, first.mask_logits.numel() * sum(pixels) / pixels[0]
    resize_first, memory_budget = options.resizes_logits, options.memory_budget
    if compact and logits < first.num_classes * prod(first.sizes.output):
        predictions = [first, *views]
        with exact_float32(device):
            return {"label_map": mean_label_map(predictions, resize_first, memory_budget)}
    total = first.mask_logits.new_zeros(first.num_classes, *first.sizes.output)
    for view in chain([first], views):
        with exact_float32(device):  # but not around the network, which runs in `next(views)`
            add_scores(total, view, resize_first, memory_budget)
    return {"label_map": total.argmax(0).int()} if compact else {"sem_seg": total.div_(len(pixels))}


def add_scores(total: Tensor, view: ImagePrediction, resize_first: bool, memory_budget: int) -> None:
    """Add a view's scores to `total` (K, H, W)."""
    score = tile_scorer(view, resize_first)
    classes = torch.arange(len(total), device=total.device)

    def add(tile: Tile) -> None:
        tile.of(total).add_(score(tile).compute(classes))

    over_tiles(add, score_tiles([view], resize_first, memory_budget))


def mean_label_map(views: Sequence[ImagePrediction], resize_first: bool, memory_budget: int) -> Tensor:
    """Return the class of highest mean score at each pixel, (H, W) int32."""
    scorers = [tile_scorer(view, resize_first) for view in views]
    return best_classes(lambda tile: _sum(scorers, tile), views, resize_first, memory_budget)


def _sum(scorers: Sequence[Scorer], tile: Tile) -> TileScores:
    """Sum the scores of all views in a tile."""
    lower, upper, compute = zip(*(_bound_over_tile(score(tile)) for score in scorers), strict=True)
    return TileScores(
        sum(lower), sum(upper), lambda classes: reduce(Tensor.add_, (each(classes) for each in compute))
    )


def _bound_over_tile(scores: TileScores) -> TileScores:
    """Take the bounds over the whole tile, (K, 1): views have them in different neighborhoods."""
    lower, upper = scores.lower.flatten(1), scores.upper.flatten(1)
    return scores._replace(lower=lower.amin(1, keepdim=True), upper=upper.amax(1, keepdim=True))
