"""Cityscapes' IoU of label maps: of classes, of categories, and both with objects of equal weight (iIoU).

Predictions in files are PNGs of Cityscapes' label ids, one for each image.

Shapes: `H, W` the image's sides in pixels, `I` instance ids of an image, `L` label ids, from 0 on.
Counts are (L + 3, L) pixels. The first L rows are the confusion matrix, rows the ground truth, columns the
prediction. The last 3 rows hold, by the label of ground-truth objects, pixels predicted as this label, pixels
predicted as any label of its category, and all pixels; each object weighs as much as one of average size.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mask2former.evaluation.cityscapes.evaluator import CityscapesEvaluator, score_files
from mask2former.evaluation.cityscapes.ground_truth import EVALUATED, LABELS, THINGS, InstanceMap, check_size
from mask2former.evaluation.cityscapes.submission import write_labels
from mask2former.evaluation.common.metadata import required_attribute
from mask2former.evaluation.evaluator import Metrics
from mask2former.utils.label_maps import Array, read_label_map, relabel
from mask2former.utils.storage import PathLike

UNLABELED = 0
NUM_LABELS = max(LABELS) + 1
AVERAGE_SIZE = {  # pixels of an object in Cityscapes' training set, from the benchmark
    "person": 3462.4756337644,
    "rider": 3930.4788056518,
    "car": 12794.0202738185,
    "truck": 27855.1264367816,
    "bus": 35732.1511111111,
    "train": 67583.7075812274,
    "motorcycle": 6298.7200839748,
    "bicycle": 4672.3249222261,
}


def count(truth: InstanceMap, pred: Array, where: object) -> Array:
    """Return the counts (L + 3, L) of one image; `pred` (H, W) holds label ids.

    Raises:
        ValueError: the prediction and the ground truth differ in size, or a label is unknown.
    """
    check_size(pred.shape, truth, where)
    unknown = [value for value in np.flatnonzero(np.bincount(pred.ravel())).tolist() if value not in LABELS]
    if unknown:
        raise ValueError(
            f"{where}: label {unknown[0]} is not among the known ones, {min(LABELS)} to {max(LABELS)}"
        )
    pairs = truth.pixels.astype(np.int64) * NUM_LABELS + pred
    shared = np.bincount(pairs.ravel(), minlength=(truth.ids[-1] + 1) * NUM_LABELS)
    shared = shared.reshape(-1, NUM_LABELS)[truth.ids]  # (I, L)
    counts = np.zeros((NUM_LABELS + 3, NUM_LABELS))
    np.add.at(counts, truth.labels, shared)
    for label in THINGS:
        own = shared[truth.is_object & (truth.labels == label)]
        weighted = (own * (AVERAGE_SIZE[LABELS[label]["name"]] / own.sum(1, keepdims=True))).sum(0)
        in_category = weighted[_category_ids(LABELS[label]["category"])]
        counts[-3:, label] = weighted[label], in_category.sum(), weighted.sum()
    return counts


def iou_metrics(images: Sequence[Array]) -> Metrics:
    """Return IoU and iIoU over classes, IoU_category and iIoU_category over categories, and each, in percent.

    `mIoU`, as other datasets call it, equals `IoU`. A class or category that is neither in the ground truth
    nor predicted is NaN, and is left out of the means; one that is only predicted is 0.
    """
    counts = sum(images, np.zeros((NUM_LABELS + 3, NUM_LABELS)))
    categories = {LABELS[id]["category"]: _category_ids(LABELS[id]["category"]) for id in EVALUATED}
    groups = {  # metric -> class or category -> label ids
        "IoU": {LABELS[id]["name"]: [id] for id in EVALUATED},
        "iIoU": {LABELS[id]["name"]: [id] for id in THINGS},
        "IoU_category": {name: [id for id in ids if id in EVALUATED] for name, ids in categories.items()},
        "iIoU_category": {
            name: ids for name, ids in categories.items() if all(LABELS[id]["hasInstances"] for id in ids)
        },
    }
    values = {
        metric: {name: 100 * _iou(counts, metric, ids) for name, ids in named.items()}
        for metric, named in groups.items()
    }
    means = {}
    for metric, named in values.items():
        valid = [value for value in named.values() if not math.isnan(value)]
        means[metric] = sum(valid) / len(valid) if valid else math.nan
    each = {f"{metric}-{name}": value for metric, named in values.items() for name, value in named.items()}
    return {"mIoU": means["IoU"], **means, **each}


def score_folders(gt_dir: PathLike, pred_dir: PathLike, workers: int = 1) -> Metrics:
    """Return the metrics of saved predictions, see `iou_metrics` and `score_files`."""

    def score(image_id: str, truth: InstanceMap, file: Path) -> Array:
        return count(truth, read_label_map(file), file)

    return iou_metrics(score_files(gt_dir, pred_dir, ".png", score, workers))


def label_id_map(output: Mapping[str, Any], label_ids: Mapping[int, int]) -> Array:
    """Return the label ids (H, W) of a model's output, by the label id of each contiguous class."""
    labels = output["label_map"] if "label_map" in output else output["sem_seg"].argmax(0)
    return relabel(labels.cpu().numpy(), label_ids)


class CityscapesSemSegEvaluator(CityscapesEvaluator):
    """Evaluator of a model's `label_map` (H, W) or `sem_seg` scores (K, H, W) by Cityscapes' IoU.

    A pixel that is predicted as the ignored label counts as unlabeled.

    Args:
        metadata: has `official_label_ids` (label ids by contiguous class) and `ignore_label`.
        output_dir: folder below which predictions are saved.
        save_predictions: save them in `submission/semantic`.
    """

    def __init__(
        self, *, metadata: Any, output_dir: PathLike | None = None, save_predictions: bool = False
    ) -> None:
        label_ids = dict(enumerate(required_attribute(metadata, "official_label_ids")))
        label_ids[required_attribute(metadata, "ignore_label")] = UNLABELED
        super().__init__(
            "sem_seg",
            output_dir if save_predictions else None,
            "semantic",
            predict=partial(label_id_map, label_ids=label_ids),
            save=write_labels,
            score=lambda image_id, truth, pred: count(truth, pred, "model's result"),
            summarize=iou_metrics,
        )


def _category_ids(category: str) -> list[int]:
    """Return all labels of a category, ignored ones too."""
    return [id for id, row in LABELS.items() if row["category"] == category]


def _iou(counts: Array, metric: str, ids: list[int]) -> float:
    """Return the IoU of a group of labels; NaN if it is neither in the ground truth nor predicted.

    Pixels of evaluated labels outside of the group are false positives, those of ignored labels are not.
    """
    confusion, objects = counts[:-3], counts[-3:]
    wrong = confusion[np.setdiff1d(EVALUATED, ids)][:, ids].sum()
    if metric.startswith("iIoU"):
        hits, total = objects[int(metric == "iIoU_category"), ids], objects[2, ids]
    else:
        hits, total = confusion[ids][:, ids], confusion[ids]
    union = total.sum() + wrong
    return float(hits.sum() / union) if union else float("nan")
