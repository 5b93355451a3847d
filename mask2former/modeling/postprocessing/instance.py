"""Instance segmentation: the most probable pairs of query and class, each with the query's mask.

A mask is resized only inside the box that its positive logits can influence.

Shapes: `Q` queries, `K` classes, `n` distinct queries selected, `N` instances, `m` runs of a mask, `h, w` the
sides of the mask logits, `R, C` those of a part of a mask, `H, W` those of the output in pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mask2former.modeling.postprocessing.tiles import (
    AxisResizing,
    Resizing,
    Tile,
    over_tiles,
    pixels_within,
    to_output,
)
from mask2former.modeling.predictions import ImagePrediction, Sizes
from mask2former.structures import Instances, RunLengthMasks


def predict_instances(
    prediction: ImagePrediction,
    *,
    max_instances: int,
    thing_ids: Sequence[int] | None = None,
    one_class_per_query: bool = False,
    memory_budget: int,
) -> Instances:
    """Return the N <= min(max_instances, Q K) most probable pairs of query and class, by decreasing score.

    The fields are `pred_masks` (RunLengthMasks, on the CPU), `pred_boxes`, `scores`, `pred_classes` and
    `pred_queries`, the position of its query among Q. The score is the class probability times the mean mask
    probability inside the mask. A query may appear with several classes, unless `one_class_per_query`. A mask
    may be empty; its score and box are then zero.
    Unless `thing_ids` is None, only these classes are kept among the best pairs.
    """
    probabilities, sizes = prediction.probabilities[:, :-1], prediction.sizes
    if one_class_per_query:
        probabilities = _best_class_alone(probabilities, thing_ids)
        max_instances = min(max_instances, len(probabilities))
    best, index = probabilities.flatten().topk(min(max_instances, probabilities.numel()))
    query, label = index // prediction.num_classes, index % prediction.num_classes
    if thing_ids is not None:
        kept = torch.isin(label, label.new_tensor(thing_ids))
        best, query, label = best[kept], query[kept], label[kept]
    distinct, which = query.unique(return_inverse=True)
    masks, confidence = masks_at_output(prediction.mask_logits[distinct], sizes, memory_budget)
    scores, order = (best * confidence[which]).sort(descending=True, stable=True)
    which = which[order]
    return Instances(
        sizes.output,
        pred_masks=masks[which],
        pred_boxes=masks.boxes().to(which.device)[which],
        scores=scores,
        pred_classes=label[order],
        pred_queries=query[order],
    )


def _best_class_alone(probabilities: Tensor, thing_ids: Sequence[int] | None) -> Tensor:
    """Return probabilities (Q, K) with -1 for all but each query's best class, of `thing_ids` if given."""
    allowed = torch.ones_like(probabilities[0], dtype=torch.bool)
    if thing_ids is not None:
        allowed[:] = False
        allowed[list(thing_ids)] = True
    best = probabilities.where(allowed, -1).max(1, keepdim=True)
    return torch.full_like(probabilities, -1).scatter(1, best.indices, best.values)


def masks_at_output(mask_logits: Tensor, sizes: Sizes, budget: int) -> tuple[RunLengthMasks, Tensor]:
    """Return the n masks of logits (n, h, w) on the CPU, and the mean probability (n,) inside each."""
    whole = to_output(mask_logits, sizes)
    boxes = _influenced_boxes(mask_logits > 0, whole)
    found = [_mask(logits, whole, box, budget) for logits, box in zip(mask_logits, boxes, strict=True)]
    masks = RunLengthMasks(sizes.output, [runs.cpu() for runs, _ in found])
    totals = torch.stack([total for _, total in found]) if found else mask_logits.new_zeros(0)
    return masks, totals / (masks.areas().to(totals) + 1e-6)


def _influenced_boxes(positive: Tensor, whole: Resizing) -> list[Tile]:
    """Return the box of the output that the positive logits of each map (n, h, w) influence."""
    spans = [_influenced_span(positive.any(2), whole.rows), _influenced_span(positive.any(1), whole.columns)]
    return [
        Tile(range(top, bottom), range(left, right))
        for (top, bottom), (left, right) in zip(*(span.tolist() for span in spans), strict=True)
    ]


def _influenced_span(positive: Tensor, axis: AxisResizing) -> Tensor:
    """Return begin and end (n, 2) on the resized axis of what the `positive` positions (n, s) influence."""
    hit = (positive.float() @ (axis.weights > 0).float() > 0).int()
    return torch.stack([hit.argmax(1), hit.shape[1] - hit.flip(1).argmax(1)], dim=1) * hit.any(1)[:, None]


def _mask(logits: Tensor, whole: Resizing, box: Tile, budget: int) -> tuple[Tensor, Tensor]:
    """Return the merged runs (m, 2) of the mask of logits (h, w), and the sum of probabilities inside."""
    if not box.area:
        return torch.empty(0, 2, dtype=torch.int64), logits.new_zeros(())
    rows, columns = whole
    # Transposed, because runs go down the columns
    tall = logits[rows.source(box.rows)].T @ rows.part(box.rows)  # (w, R)

    def work(tile: Tile) -> tuple[Tensor, Tensor]:
        band = columns.part(tile.columns).T @ tall[columns.source(tile.columns)]  # (C, R)
        inside = band > 0
        return _column_runs(inside, tile, height=len(rows.last)), (band.sigmoid_() * inside).sum()

    step = max(1, pixels_within(budget, 1, logits.device) // len(box.rows))
    tiles = [Tile(box.rows, box.columns[start : start + step]) for start in range(0, len(box.columns), step)]
    parts, totals = zip(*over_tiles(work, tiles), strict=True)
    runs = torch.cat(parts)
    # Runs touch at the bottom of a column and the top of the next.
    touch = runs[:-1, 1] == runs[1:, 0]
    keep = torch.ones_like(runs, dtype=torch.bool)
    keep[:-1, 1], keep[1:, 0] = ~touch, ~touch
    return runs[keep].view(-1, 2), torch.stack(totals).sum()


def _column_runs(inside: Tensor, tile: Tile, height: int) -> Tensor:
    """Return the runs (m, 2) of the tile's part of a mask (C, R), column by column."""
    ends = inside.new_zeros(inside.shape[0], inside.shape[1] + 1)
    ends[:, :-1] = inside
    ends[:, 1:] ^= inside  # True where a run begins, and below its last pixel
    column, row = ends.nonzero(as_tuple=True)
    return ((column + tile.columns.start) * height + row + tile.rows.start).view(-1, 2)
