"""Semantic segmentation: the score of each class at each pixel, or the class of highest score.

A class's score is the sum over queries of class probability times mask probability, of mask logits at output
size. Models of semantic segmentation alone may be evaluated with scores at the image's size instead, which
are then resized.

Shapes: `Q` queries, `K` classes, `k` classes asked for, `h, w` the sides of the mask logits, `R, C` those of
a tile, `H, W` those of the output in pixels.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mask2former.modeling.postprocessing.tiles import (
    COPIES,
    Tile,
    contenders,
    over_tiles,
    resizing,
    tiles_within,
    to_output,
)
from mask2former.modeling.predictions import ImagePrediction


class TileScores(NamedTuple):
    """Class scores in one tile: bounds (K, ...), and a function from classes (k,) to scores (k, R, C)."""

    lower: Tensor
    upper: Tensor
    compute: Callable[[Tensor], Tensor]


Scorer = Callable[[Tile], TileScores]


def semantic_scores(prediction: ImagePrediction, *, resize_first: bool, memory_budget: int) -> Tensor:
    """Return the scores (K, H, W) of one image."""
    score = tile_scorer(prediction, resize_first)
    scores = prediction.mask_logits.new_empty(prediction.num_classes, *prediction.sizes.output)
    classes = torch.arange(len(scores), device=scores.device)

    def fill(tile: Tile) -> None:
        tile.of(scores)[:] = score(tile).compute(classes)

    over_tiles(fill, score_tiles([prediction], resize_first, memory_budget))
    return scores


def semantic_label_map(prediction: ImagePrediction, *, resize_first: bool, memory_budget: int) -> Tensor:
    """Return the class of highest score at each pixel, (H, W) int32."""
    scorer = tile_scorer(prediction, resize_first)
    return best_classes(scorer, [prediction], resize_first, memory_budget)


def best_classes(
    score: Scorer, predictions: Sequence[ImagePrediction], resize_first: bool, memory_budget: int
) -> Tensor:
    """Return the class of highest score at each pixel, (H, W) int32; `score` combines the `predictions`.

    Scores are computed only for the classes that can win somewhere in a tile.
    """
    first = predictions[0]
    labels = torch.empty(first.sizes.output, dtype=torch.int32, device=first.mask_logits.device)

    def fill(tile: Tile) -> None:
        scores = score(tile)
        classes = contenders(scores.lower, scores.upper).nonzero()[:, 0]
        # `max` gives the same indices as `argmax`, several times as fast
        tile.of(labels)[:] = classes[scores.compute(classes).max(0).indices] if len(classes) > 1 else classes

    over_tiles(fill, score_tiles(predictions, resize_first, memory_budget))
    return labels


def score_tiles(predictions: Sequence[ImagePrediction], resize_first: bool, budget: int) -> list[Tile]:
    """Return tiles that leave room for the masks, scores and bounds of one prediction at a time.

    Of the other predictions only scores at their own size are held.
    """
    numbers = []  # per pixel of the output
    output, device = predictions[0].sizes.output, predictions[0].mask_logits.device
    for prediction in predictions:
        height, width = prediction.mask_logits.shape[1:] if resize_first else prediction.sizes.image
        source = COPIES * height * width / (output[0] * output[1])
        numbers.append(sum(prediction.probabilities.shape) * max(1.0, source))
    held = sum(numbers[1:]) / COPIES**2
    return tiles_within(budget, output, max(numbers) + held, device)


def tile_scorer(prediction: ImagePrediction, resize_first: bool) -> Scorer:
    """Return the function that computes the scores in a tile of the output."""
    if prediction.per_pixel:
        score = _resize_class_logits(prediction)
    else:
        classes = prediction.probabilities[:, :-1].T.contiguous()  # (K, Q)
        score = (_score_resized_logits if resize_first else _resize_scores)(classes, prediction)

    def flip_back(tile: Tile) -> TileScores:
        lower, upper, compute = score(tile.flipped(prediction.sizes.output[1]))
        return TileScores(lower.flip(-1), upper.flip(-1), lambda classes: compute(classes).flip(-1))

    return flip_back if prediction.flipped else score


def _resize_class_logits(prediction: ImagePrediction) -> Scorer:
    """Compute the logits of classes at output size, which are the scores of a per-pixel baseline."""
    logits = prediction.mask_logits
    whole = to_output(logits, prediction.sizes)

    def score(tile: Tile) -> TileScores:
        source = whole.source(logits, tile)
        return TileScores(*whole.bounds(source), lambda classes: whole.resize(source[classes], tile))

    return score


def _score_resized_logits(probabilities: Tensor, prediction: ImagePrediction) -> Scorer:
    """Compute scores from mask logits at output size."""
    logits = prediction.mask_logits
    whole = to_output(logits, prediction.sizes)

    def score(tile: Tile) -> TileScores:
        source = whole.source(logits, tile)
        lower, upper = (_scores(probabilities, bound.sigmoid()) for bound in whole.bounds(source))
        return TileScores(
            lower,
            upper,
            lambda classes: _scores(probabilities[classes], whole.resize(source, tile).sigmoid_()),
        )

    return score


def _resize_scores(probabilities: Tensor, prediction: ImagePrediction) -> Scorer:
    """Compute scores at the image's size and resize them."""
    logits, sizes = prediction.mask_logits, prediction.sizes
    to_image = resizing(logits.shape[1:], [(sizes.padded, sizes.image)], logits.device)
    enlarge = resizing(sizes.image, [(sizes.output, sizes.output)], logits.device)

    def score(tile: Tile) -> TileScores:
        part = enlarge.source_tile(tile)
        masks = to_image.resize(to_image.source(logits, part), part)
        source = _scores(probabilities, masks.sigmoid_())
        return TileScores(*enlarge.bounds(source), lambda classes: enlarge.resize(source[classes], tile))

    return score


def _scores(classes: Tensor, masks: Tensor) -> Tensor:
    """Return scores (k, R, C) of class probabilities (k, Q) and mask probabilities (Q, R, C)."""
    return (classes @ masks.flatten(1)).unflatten(1, masks.shape[1:])
