"""Cityscapes' rules for matching predicted to ground-truth objects, and its average precision.

They differ from COCO's: a predicted mask is excused (neither right nor wrong) if it lies on or finds a group
or a small object, the number of masks is not limited, and precision is not interpolated.

Shapes: `H, W` the image's sides in pixels, `I` instance ids, `P` predictions, `M` pairs of both, `C` labels,
`T` IoU thresholds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from mask2former.evaluation.cityscapes.ground_truth import LABELS, THINGS, InstanceMap, check_size
from mask2former.structures import RunLengthMasks
from mask2former.utils.label_maps import Array

THRESHOLDS = np.arange(0.5, 1.0, 0.05)
SMALL = 100  # pixels; smaller objects need not be found


@dataclass(frozen=True)
class Matches:
    """Comparison of ground truth and predictions, of one image or of several.

    Pairs have the same label and an IoU above the lowest threshold.
    """

    true_label: Array  # (I,) label of each instance id
    is_wanted: Array  # (I,) bool, whether it must be found
    label: Array  # (P,) label of each prediction
    score: Array  # (P,)
    excused: Array  # (P,) fraction of its pixels that excuse it
    pred_place: Array  # (M,) index in P of each pair
    true_place: Array  # (M,) index in I of each pair
    iou: Array  # (M,) IoU of each pair


def shared_pixels(truth: InstanceMap, masks: RunLengthMasks) -> Array:
    """Return the pixels that each mask shares with each instance id, (P, I)."""
    columns, size = truth.pixels.T.ravel(), int(truth.ids[-1]) + 1
    shared = np.zeros((len(masks), len(truth.ids)), np.int64)
    for row, mask in zip(shared, masks.runs, strict=True):
        below = [columns[start:end] for start, end in mask.tolist()]
        if below:
            row[:] = np.bincount(np.concatenate(below), minlength=size)[truth.ids]
    return shared


def match(
    truth: InstanceMap, masks: RunLengthMasks, label_ids: Sequence[int], scores: Sequence[float]
) -> Matches:
    """Compare the masks (P, H, W) of an image, with their labels and scores, with its ground truth.

    Empty masks, and masks of labels whose objects are not evaluated, count nowhere.

    Raises:
        ValueError: the masks and the ground truth differ in size.
    """
    check_size(masks.size, truth, "model's result")
    pred_label, score = np.array(label_ids, np.int64), np.array(scores, np.float64)
    shared = shared_pixels(truth, masks)
    kept = np.isin(pred_label, THINGS) & shared.any(1)
    pred_label, score, shared = pred_label[kept], score[kept], shared[kept]

    is_small = truth.areas < SMALL
    # As in the official code, an object with a number is not void even if its label (caravan) is ignored
    is_void = np.isin(truth.ids, [id for id, row in LABELS.items() if row["ignoreInEval"]])
    inter = shared * (pred_label[:, None] == truth.labels)
    area = shared.sum(1)
    # As in the official code, a small group excuses twice
    excuse = shared[:, is_void].sum(1) + inter[:, ~truth.is_object].sum(1) + inter[:, is_small].sum(1)
    iou = inter / (area[:, None] + truth.areas - inter)
    pred_place, true_place = np.nonzero(iou > THRESHOLDS[0])
    return Matches(
        true_label=truth.labels,
        is_wanted=truth.is_object & ~is_small,
        label=pred_label,
        score=score,
        excused=excuse / area,
        pred_place=pred_place,
        true_place=true_place,
        iou=iou[pred_place, true_place],
    )


def joined(images: Sequence[Matches]) -> Matches:
    """Return the matches of several images as those of one."""
    nothing = np.zeros(0, np.int64)
    images = [Matches(nothing, nothing > 0, *[nothing] * 6), *images]
    table = {name: [getattr(image, name) for image in images] for name in (f.name for f in fields(Matches))}
    first_pred = np.cumsum([0, *map(len, table["label"])])
    first_true = np.cumsum([0, *map(len, table["true_label"])])
    table["pred_place"] = [places + n for places, n in zip(table["pred_place"], first_pred, strict=False)]
    table["true_place"] = [places + n for places, n in zip(table["true_place"], first_true, strict=False)]
    return Matches(**{name: np.concatenate(values) for name, values in table.items()})


def precision_table(matches: Matches) -> Array:
    """Return the average precision (C, T) of each label in `THINGS`; NaN where there is nothing to find."""
    return np.array([[_precision_at(matches, label, t) for t in THRESHOLDS] for label in THINGS])


def _precision_at(matches: Matches, label: int, threshold: float) -> float:
    """Return the average precision of a label if a match needs an IoU above the threshold."""
    wanted = matches.is_wanted & (matches.true_label == label)
    if not wanted.any():
        return float("nan")
    close = matches.iou > threshold
    pred, true = matches.pred_place[close], matches.true_place[close]
    is_wrong = (matches.label == label) & (matches.excused <= threshold)
    is_wrong[pred] = False  # a match with a group or a small object is neither right nor wrong
    pred, true = pred[wanted[true]], true[wanted[true]]

    order = np.lexsort((-matches.score[pred], true))
    found, best = np.unique(true[order], return_index=True)
    is_hit = np.zeros(len(pred) + is_wrong.sum(), bool)
    is_hit[best] = True
    scores = np.concatenate([matches.score[pred[order]], matches.score[is_wrong]])
    return average_precision(is_hit, scores, int(wanted.sum()) - len(found))


def average_precision(is_hit: Array, scores: Array, missed: int) -> float:
    """Return the area below the curve of precision over recall, as Cityscapes computes it.

    The curve has a point for each distinct score, of the predictions with at least this score, and ends at
    recall 0 and precision 1. The precision of a point holds halfway to its neighbors.

    Args:
        is_hit: (P,) bool, whether a prediction is right.
        scores: (P,) scores of the predictions.
        missed: number of ground-truth objects that no prediction found.
    """
    order = np.argsort(scores)
    right = np.append(0, is_hit[order].cumsum())  # [i]: hits among the i lowest scores
    _, lower = np.unique(scores[order], return_index=True)
    hits = right[-1] - right[lower]
    precision = np.append(hits / (len(scores) - lower), 1)
    recall = np.append(hits / max(right[-1] + missed, 1), 0)
    around = np.concatenate([recall[:1], recall, [0]])
    return float(precision @ ((around[:-2] - around[2:]) / 2))
