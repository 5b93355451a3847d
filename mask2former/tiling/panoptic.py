"""Panoptic result of an image in tiles: merged things over the stuff of highest mean score.

Only queries above the threshold of class probability count, as without tiles. Things are painted by
decreasing score. One that keeps too little of its mask against those before it is left out. Things that no
tile saw, but the pass over the whole image alone, come last, and get no pixels that tiles found to be stuff.

Shapes: `Q` queries, `n` of them kept, `K` classes, `h, w` the sides of a tile's mask logits, `H, W` the
image's, `R, C` those of a part of it, in pixels.
"""

from collections.abc import Iterator, Sequence
from math import isqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mask2former.modeling.postprocessing.inference import InferenceOptions, exact_float32
from mask2former.modeling.postprocessing.instance import predict_instances
from mask2former.modeling.postprocessing.tiles import Tile
from mask2former.modeling.predictions import ImagePrediction
from mask2former.structures import Instances
from mask2former.tiling import runs as run_lengths
from mask2former.tiling.merging import Merged
from mask2former.utils.label_maps import Array
from mask2former.utils.memory import release_pages

SegmentInfo = dict[str, Any]

INSIDE = 0.5  # probability from which on a pixel is inside a mask
PIXELS_AT_ONCE = 2**24


def sure_things(prediction: ImagePrediction, options: InferenceOptions) -> Instances:
    """Return the things whose class probability is above the threshold, one a query."""
    is_thing = _sure(prediction, options) & _of_things(prediction, options)
    things = _with_best_class(prediction, is_thing)
    with exact_float32(prediction.mask_logits.device):
        return predict_instances(
            things, max_instances=len(things.probabilities), memory_budget=options.memory_budget
        )


def sure_stuff(prediction: ImagePrediction, options: InferenceOptions) -> ImagePrediction:
    """Return the prediction of the queries (n,) of stuff above the threshold, of their best class alone."""
    return _with_best_class(prediction, _sure(prediction, options) & ~_of_things(prediction, options))


def _with_best_class(prediction: ImagePrediction, chosen: Tensor) -> ImagePrediction:
    """Return the prediction of some queries, with zero for the probability of all but their best class."""
    probabilities = prediction.probabilities[chosen]
    best = probabilities.max(1, keepdim=True)
    alone = torch.zeros_like(probabilities).scatter(1, best.indices, best.values)
    return prediction._replace(probabilities=alone, mask_logits=prediction.mask_logits[chosen])


def _sure(prediction: ImagePrediction, options: InferenceOptions) -> Tensor:
    """Return which queries (Q,) are objects with a class probability above the threshold."""
    probability, label = prediction.probabilities.max(1)
    return (label != prediction.num_classes) & (probability > options.object_mask_threshold)


def _of_things(prediction: ImagePrediction, options: InferenceOptions) -> Tensor:
    """Return the queries (Q,) whose best class is one of things."""
    label = prediction.probabilities.argmax(1)
    return torch.isin(label, label.new_tensor(options.thing_ids))


def stuff_code(scores: Tensor, classes: Tensor, predictions: Sequence[ImagePrediction]) -> Tensor:
    """Choose the class of highest score, plus 1; 0 where no mask of it is likely."""
    highest = torch.stack([_highest(prediction) for prediction in predictions]).amax(0)[classes]
    best, index = scores.max(0)
    # The score of a mask of probability p is p times the class probability
    return (classes[index] + 1) * ((best >= INSIDE * highest[index]) & (best > 0))


def _highest(prediction: ImagePrediction) -> Tensor:
    """Return the largest probability of each class (K,) among all queries."""
    probabilities = prediction.probabilities[:, :-1]
    return probabilities.amax(0) if len(probabilities) else probabilities.new_zeros(prediction.num_classes)


def paint(
    codes: Array, things: Sequence[Merged], num_classes: int, options: InferenceOptions
) -> list[SegmentInfo]:
    """Paint things over the stuff in `codes` (H, W), number the segments from 1, and return them.

    `codes` are those of `stuff_code`; they become the segment ids, 0 where there is none.
    """
    first = num_classes + 1  # code of the first thing
    whole = {Tile(*map(range, codes.shape))}
    things = sorted(things, key=lambda thing: thing.places == whole)
    labels = [thing.label for thing in things]
    for number, thing in enumerate(things):
        most = 0 if thing.places == whole else num_classes
        _paint_thing(codes, thing, first + number, most, options.overlap_threshold)
    areas = np.zeros(first + len(things), np.int64)
    for band in _bands(codes):
        areas += np.bincount(band.ravel(), minlength=len(areas))
    segments: list[SegmentInfo] = []
    table = np.zeros(len(areas), codes.dtype)
    for code in [*range(first, len(areas)), *range(1, first)]:
        if areas[code]:
            label = labels[code - first] if code >= first else code - 1
            table[code] = len(segments) + 1
            segments.append(
                {"id": len(segments) + 1, "isthing": label in options.thing_ids, "category_id": label}
            )
    for band in _bands(codes):
        band[:] = table[band]
    return segments


def _bands(codes: Array) -> Iterator[Array]:
    """Yield bands of rows; the pages of a map in a file are released after each."""
    rows = max(1, PIXELS_AT_ONCE // codes.shape[1])
    for top in range(0, len(codes), rows):
        yield codes[top : top + rows]
        release_pages(codes)


def _paint_thing(codes: Array, thing: Merged, code: int, most: int, overlap_threshold: float) -> None:
    """Give a thing its pixels with codes up to `most`, if these are enough of its mask."""
    height = len(codes)
    runs = run_lengths.union(thing.parts, height)

    def free(part: Tile) -> tuple[Array, Array]:
        rows, columns = part
        view = codes[rows.start : rows.stop, columns.start : columns.stop]
        return view, run_lengths.dense(runs, part, height) & (view <= most)

    parts = list(_parts(thing.box))
    won = sum(int(free(part)[1].sum()) for part in parts)
    if won and won / run_lengths.area(runs) >= overlap_threshold:
        for part in parts:
            view, mask = free(part)
            view[mask] = code
    release_pages(codes)


def _parts(box: tuple[int, int, int, int]) -> Iterator[Tile]:
    """Yield the parts of a box, of at most PIXELS_AT_ONCE each."""
    left, top, right, bottom = box
    side = isqrt(PIXELS_AT_ONCE)
    for x in range(left, right, side):
        for y in range(top, bottom, side):
            yield Tile(range(y, min(y + side, bottom)), range(x, min(x + side, right)))
