"""Cityscapes' rules of which found object is which true one, and the average precision that follows.

They are not COCO's: groups and small objects excuse what lies on them, a mask that finds one of those is
neither right nor wrong, any number of masks can count, and precision is not interpolated.

Shapes: `H, W` the image's sides in pixels, `I` true ids, `P` predictions, `M` pairs of both, `C` labels,
`T` IoU thresholds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mask2former.evaluation.cityscapes.ground_truth import InstanceMap, Labels, check_size, object_labels
from mask2former.structures import RunLengthMasks
from mask2former.utils.label_maps import Array

THRESHOLDS = np.arange(0.5, 1.0, 0.05)
SMALL = 100  # pixels; objects below are not to be found


@dataclass(frozen=True)
class Matches:
    """What is left of images when their masks were compared.

    Of the ground truth: label (I,), and whether it is to be found (I,). Of predictions: label (P,), score
    (P,),
    share of pixels that excuse it (P,). Of pairs of one label with an IoU above the lowest threshold: places
    of prediction and ground truth (M,), IoU (M,).
    """

    true_label: Array
    is_wanted: Array
    label: Array
    score: Array
    excused: Array
    pred_place: Array
    true_place: Array
    iou: Array


def shared_pixels(truth: InstanceMap, masks: RunLengthMasks) -> Array:
    """Pixels that each mask shares with each true id, (P, I)."""
    columns, size = truth.pixels.T.ravel(), int(truth.ids[-1]) + 1
    shared = np.zeros((len(masks), len(truth.ids)), np.int64)
    for row, runs in zip(shared, masks.runs, strict=True):
        below = [columns[start:end] for start, end in runs.tolist()]
        if below:
            row[:] = np.bincount(np.concatenate(below), minlength=size)[truth.ids]
    return shared


def match(
    truth: InstanceMap,
    masks: RunLengthMasks,
    label_ids: Sequence[int],
    scores: Sequence[float],
    labels: Labels,
) -> Matches:
    """Compare the masks (P, H, W) of an image with its ground truth; `label_ids` and `scores` are theirs.

    Empty masks, and masks of labels without evaluated objects, count nowhere.

    Raises:
        ValueError: the masks have another size than the truth.
    """
    check_size(masks.size, truth, "model's result")
    pred_label, score = np.array(label_ids, np.int64), np.array(scores, np.float64)
    shared = shared_pixels(truth, masks)
    kept = np.isin(pred_label, [label.id for label in object_labels(labels)]) & shared.any(1)
    pred_label, score, shared = pred_label[kept], score[kept], shared[kept]

    is_small = truth.areas < SMALL
    # A numbered object of an ignored label, as a caravan, is no void: so the official code has it
    is_void = np.isin(truth.ids, [label.id for label in labels.values() if label.is_ignored])
    inter = shared * (pred_label[:, None] == truth.labels)
    area = shared.sum(1)
    # A small group excuses twice: so the official code has it
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
    """The matches of several images as those of one."""
    if not images:
        nothing = np.zeros(0, np.int64)
        return Matches(nothing, nothing > 0, *[nothing] * 6)
    first_pred = np.cumsum([0, *(len(matches.label) for matches in images)])
    first_true = np.cumsum([0, *(len(matches.true_label) for matches in images)])
    table = {name: np.concatenate([getattr(m, name) for m in images]) for name in Matches.__annotations__}
    pairs = [len(matches.iou) for matches in images]
    table["pred_place"] += np.repeat(first_pred[:-1], pairs)
    table["true_place"] += np.repeat(first_true[:-1], pairs)
    return Matches(**table)


def precision_table(matches: Matches, label_ids: Sequence[int]) -> Array:
    """The average precision (C, T) of each label at each threshold; NaN where there is nothing to find."""
    return np.array([[_precision_at(matches, label, t) for t in THRESHOLDS] for label in label_ids])


def _precision_at(matches: Matches, label: int, threshold: float) -> float:
    """The average precision of a label where a found object has an IoU above the threshold."""
    wanted = matches.is_wanted & (matches.true_label == label)
    if not wanted.any():
        return float("nan")
    close = matches.iou > threshold
    pred, true = matches.pred_place[close], matches.true_place[close]
    surplus = (matches.label == label) & (matches.excused <= threshold)
    surplus[pred] = False  # what found a group or a small object is neither right nor wrong
    pred, true = pred[wanted[true]], true[wanted[true]]

    order = np.lexsort((-matches.score[pred], true))
    found, best = np.unique(true[order], return_index=True)
    is_hit = np.zeros(len(pred) + surplus.sum(), bool)
    is_hit[best] = True
    scores = np.concatenate([matches.score[pred[order]], matches.score[surplus]])
    return average_precision(is_hit, scores, int(wanted.sum()) - len(found))


def average_precision(is_hit: Array, scores: Array, missed: int) -> float:
    """The area below the curve of precision over recall, as Cityscapes takes it.

    The curve has a point for each score, of what has this score or a higher one, and ends at recall 0 and
    precision 1; a point's precision holds half-way to its neighbors.

    Args:
        is_hit: (P,) bool, whether a prediction is right.
        scores: (P,) theirs.
        missed: true objects that no prediction found.
    """
    order = np.argsort(scores)
    right = np.append(0, is_hit[order].cumsum())  # [i]: hits among the i lowest scores
    _, lower = np.unique(scores[order], return_index=True)
    hits = right[-1] - right[lower]
    precision = np.append(hits / (len(scores) - lower), 1)
    recall = np.append(hits / max(right[-1] + missed, 1), 0)
    around = np.concatenate([recall[:1], recall, [0]])
    return float(precision @ ((around[:-2] - around[2:]) / 2))
