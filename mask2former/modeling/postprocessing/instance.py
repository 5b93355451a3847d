"""Instance segmentation: the most probable pairs of query and class, each with the query's mask.

A mask is resized only where it can be: in the box of what its positive logits reach.

Shapes: `Q` queries, `K` classes, `n` distinct queries chosen, `N` instances, `m` runs of a mask, `h, w` the
sides of the mask logits, `R, C` those of a part of a mask, `H, W` the output's in pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mask2former.modeling.postprocessing.tiles import (
    Axis,
    Resizing,
    Sizes,
    Tile,
    over_tiles,
    pixels_within,
    to_output,
)
from mask2former.structures import Instances, RunLengthMasks


def instances(
    class_logits: Tensor,
    mask_logits: Tensor,
    sizes: Sizes,
    *,
    max_instances: int,
    thing_ids: Sequence[int] | None = None,
    memory_budget: int,
) -> Instances:
    """The most probable pairs of query and class, by falling score.

    The score is the class probability times the mean mask probability inside the mask. A query may appear
    under several classes; a mask may be empty, then its score and box are zero.

    Args:
        class_logits: (Q, K+1).
        mask_logits: (Q, h, w).
        thing_ids: keep these classes only, after the best `max_instances` have been taken; None keeps all.

    Returns:
        `pred_masks` (RunLengthMasks, on the CPU), `pred_boxes`, `scores` and `pred_classes` of
        N <= min(max_instances, Q K) instances.
    """
    probabilities = class_logits.softmax(-1)[:, :-1]
    num_classes = probabilities.shape[1]
    best, index = probabilities.flatten().topk(min(max_instances, probabilities.numel()))
    query, label = index // num_classes, index % num_classes
    if thing_ids is not None:
        kept = torch.isin(label, label.new_tensor(thing_ids))
        best, query, label = best[kept], query[kept], label[kept]
    distinct, which = query.unique(return_inverse=True)
    masks, confidence = _masks(mask_logits[distinct], sizes, memory_budget)
    scores, order = (best * confidence[which]).sort(descending=True, stable=True)
    which = which[order]
    return Instances(
        sizes.output,
        pred_masks=masks[which],
        pred_boxes=masks.boxes().to(which.device)[which],
        scores=scores,
        pred_classes=label[order],
    )


def _masks(mask_logits: Tensor, sizes: Sizes, budget: int) -> tuple[RunLengthMasks, Tensor]:
    """The n masks of logits (n, h, w), and the mean probability (n,) inside each."""
    whole = to_output(mask_logits, sizes)
    boxes = _reach(mask_logits > 0, whole)
    found = [_mask(logits, whole, box, budget) for logits, box in zip(mask_logits, boxes, strict=True)]
    masks = RunLengthMasks(sizes.output, [runs.cpu() for runs, _ in found])
    totals = torch.stack([total for _, total in found]) if found else mask_logits.new_zeros(0)
    return masks, totals / (masks.areas().to(totals) + 1e-6)


def _reach(positive: Tensor, whole: Resizing) -> list[Tile]:
    """The box of the output that each map's positive logits (n, h, w) have a part in."""
    spans = [_span(positive.any(2), whole.rows), _span(positive.any(1), whole.columns)]
    return [
        Tile(range(top, bottom), range(left, right))
        for (top, bottom), (left, right) in zip(*(span.tolist() for span in spans), strict=True)
    ]


def _span(positive: Tensor, axis: Axis) -> Tensor:
    """From where to where (n, 2) the places (n, s) that are `positive` have a part in a resized axis."""
    hit = (positive.float() @ (axis.weights > 0).float() > 0).int()
    return torch.stack([hit.argmax(1), hit.shape[1] - hit.flip(1).argmax(1)], dim=1) * hit.any(1)[:, None]


def _mask(logits: Tensor, whole: Resizing, box: Tile, budget: int) -> tuple[Tensor, Tensor]:
    """The runs (m, 2) of one mask of logits (h, w), and the sum of the probabilities inside it."""
    if not box.area:
        return torch.empty(0, 2, dtype=torch.int64), logits.new_zeros(())
    rows, columns = whole
    # Transposed, since runs go down the columns
    tall = logits[rows.source(box.rows)].T @ rows.part(box.rows)  # (w, R)
    height = len(rows.last)

    def work(tile: Tile) -> tuple[Tensor, Tensor]:
        band = columns.part(tile.columns).T @ tall[columns.source(tile.columns)]  # (C, R)
        inside = band > 0
        return _runs(inside, tile, height), (band.sigmoid_() * inside).sum()

    step = max(1, pixels_within(budget, 1, logits.device) // len(box.rows))
    tiles = [Tile(box.rows, box.columns[start : start + step]) for start in range(0, len(box.columns), step)]
    runs, totals = zip(*over_tiles(work, tiles), strict=True)
    return _joined(torch.cat(runs)), torch.stack(totals).sum()


def _runs(inside: Tensor, tile: Tile, height: int) -> Tensor:
    """The runs (m, 2) of the tile's part of a mask (C, R), a column's each by themselves."""
    ends = inside.new_zeros(inside.shape[0], inside.shape[1] + 1)
    ends[:, :-1] = inside
    ends[:, 1:] ^= inside  # a run begins, or the one above has ended
    column, row = ends.nonzero(as_tuple=True)
    return ((column + tile.columns.start) * height + row + tile.rows.start).view(-1, 2)


def _joined(runs: Tensor) -> Tensor:
    """Runs (m, 2) in order, those made one that touch: at the foot of a column and the head of the next."""
    touch = runs[:-1, 1] == runs[1:, 0]
    keep = torch.ones_like(runs, dtype=torch.bool)
    keep[:-1, 1], keep[1:, 0] = ~touch, ~touch
    return runs[keep].view(-1, 2)
