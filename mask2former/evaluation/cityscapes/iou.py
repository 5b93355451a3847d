"""Cityscapes' IoU of label maps: of classes and of categories, and both with objects of equal weight (iIoU).

As a command: `python -m mask2former.evaluation.cityscapes.iou --gt-dir gtFine/val --pred-dir predictions
[--json]`. The ground truth is `*_instanceIds.png` at any depth below its folder; predictions are PNGs of
Cityscapes' label ids, one of an image, `<city>_<sequence>_<frame>*.png`.

Shapes: `H, W` the image's sides in pixels, `I` true ids, `L` label ids, from 0 on.
"""

import argparse
import math
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from mask2former.evaluation.cityscapes.ground_truth import (
    InstanceMap,
    Labels,
    check_size,
    labels_of,
    object_labels,
    prediction_files,
    published_labels,
    read_instance_map,
    tell_unscored,
    truth_files,
    truth_of,
)
from mask2former.evaluation.cityscapes.submission import submission_folder, write_labels
from mask2former.evaluation.common.metadata import required_attribute
from mask2former.evaluation.common.report import run_command
from mask2former.utils import comm as distributed
from mask2former.utils.label_maps import Array, read_label_map, relabeled
from mask2former.utils.storage import PathLike

UNLABELED = 0
AVERAGE_SIZE = {  # pixels of an object in Cityscapes' training set, as the benchmark has them
    "person": 3462.4756337644,
    "rider": 3930.4788056518,
    "car": 12794.0202738185,
    "truck": 27855.1264367816,
    "bus": 35732.1511111111,
    "train": 67583.7075812274,
    "motorcycle": 6298.7200839748,
    "bicycle": 4672.3249222261,
}


@dataclass
class Counts:
    """Pixels over images.

    `confusion` is (L, L), rows the ground truth, columns the prediction. `objects` is (3, L) by the label of
    true
    objects: pixels predicted as the label, as any of its category, and all; each object weighs as much as one
    of average size.
    """

    confusion: Array
    objects: Array

    @classmethod
    def empty(cls, labels: Labels) -> "Counts":
        """Counts of no image."""
        side = max(labels) + 1
        return cls(np.zeros((side, side), np.int64), np.zeros((3, side)))

    def add(self, other: "Counts") -> None:
        """Add those of other images."""
        self.confusion += other.confusion
        self.objects += other.objects


def count(truth: InstanceMap, pred: Array, labels: Labels, where: object) -> Counts:
    """The counts of one image; `pred` (H, W) holds ids of labels.

    Raises:
        ValueError: the prediction has another size than the ground truth, or an unknown label.
    """
    check_size(pred.shape, truth, where)
    side = max(labels) + 1
    unknown = [value for value in np.flatnonzero(np.bincount(pred.ravel())).tolist() if value not in labels]
    if unknown:
        raise ValueError(
            f"{where}: label {unknown[0]} is not among the known ones, {min(labels)} to {side - 1}"
        )
    pairs = truth.places() * side + pred
    shared = np.bincount(pairs.ravel(), minlength=len(truth.ids) * side).reshape(-1, side)  # (I, L)
    counts = Counts.empty(labels)
    np.add.at(counts.confusion, truth.labels, shared)
    for label in object_labels(labels):
        own = shared[truth.is_object & (truth.labels == label.id)]
        weighted = (own * (AVERAGE_SIZE[label.name] / own.sum(1, keepdims=True))).sum(0)
        of_category = weighted[_ids(labels, label.category)]
        counts.objects[:, label.id] = weighted[label.id], of_category.sum(), weighted.sum()
    return counts


def iou_metrics(counts: Counts, labels: Labels) -> OrderedDict[str, float]:
    """In percent: `IoU`, `iIoU` over classes, `IoU_category`, `iIoU_category` over categories, and of each.

    `mIoU`, the name with other data sets, is `IoU`. A class or category that is neither in the ground truth
    nor predicted is left out of the means and is NaN itself; one that is predicted only is 0.
    """
    evaluated = [label.id for label in labels.values() if not label.is_ignored]
    categories = {labels[id].category: _ids(labels, labels[id].category) for id in evaluated}
    groups = {  # metric -> class or category -> the ids it holds
        "IoU": {labels[id].name: [id] for id in evaluated},
        "iIoU": {label.name: [label.id] for label in object_labels(labels)},
        "IoU_category": {name: [id for id in ids if id in evaluated] for name, ids in categories.items()},
        "iIoU_category": {
            name: ids for name, ids in categories.items() if all(labels[id].has_objects for id in ids)
        },
    }
    values = {
        metric: {name: 100 * _iou(counts, metric, ids, evaluated) for name, ids in named.items()}
        for metric, named in groups.items()
    }
    means = {metric: _mean(list(named.values())) for metric, named in values.items()}
    each = {f"{metric}-{name}": value for metric, named in values.items() for name, value in named.items()}
    return OrderedDict({"mIoU": means["IoU"], **means, **each})


def score_folders(gt_dir: PathLike, pred_dir: PathLike) -> OrderedDict[str, float]:
    """The metrics of saved predictions, see `iou_metrics`.

    Raises:
        ValueError: a file is missing or broken, or is one of several; the message names it.
    """
    labels = published_labels()
    truths = truth_files(gt_dir)
    predictions = prediction_files(pred_dir, truths, ".png")
    counts = Counts.empty(labels)
    for image_id, file in tqdm(truths.items(), "IoU", disable=None):
        pred = read_label_map(predictions[image_id])
        counts.add(count(read_instance_map(file, labels), pred, labels, predictions[image_id]))
    return iou_metrics(counts, labels)


class CityscapesSemSegEvaluator:
    """Cityscapes' IoU of a model's `label_map` or `sem_seg`.

    Args:
        metadata: has `labels` (the table of Cityscapes' labels), `official_label_ids` (their ids by
            contiguous class) and `ignore_label`.
        output_dir: predictions are saved below it, in `submission/semantic`.
        save_predictions: whether they are, in the benchmark's format.
    """

    def __init__(
        self, *, metadata: Any, output_dir: PathLike | None = None, save_predictions: bool = False
    ) -> None:
        self._labels = labels_of(metadata)
        ids = required_attribute(metadata, "official_label_ids")
        self._label_ids = dict(enumerate(ids)) | {required_attribute(metadata, "ignore_label"): UNLABELED}
        self._folder = submission_folder(output_dir, "semantic") if save_predictions else None
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._counts, self._scored, self._unscored = Counts.empty(self._labels), 0, 0

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Count a batch: outputs with `label_map` (H, W) or `sem_seg` scores (K, H, W), inputs with truth.

        That is the file `instance_ids_file_name`. The ignored label is a prediction of nothing.

        Raises:
            ValueError: the ground truth is missing, broken or of another size, or a label is no class; where
                predictions are saved, an image may have no `instance_ids_file_name`, and is not counted.
        """
        for record, output in zip(inputs, outputs, strict=True):
            labels = output["label_map"] if "label_map" in output else output["sem_seg"].argmax(0)
            pred = relabeled(labels.cpu().numpy(), self._label_ids)
            if self._folder is not None:
                write_labels(self._folder, record["image_id"], pred)
            truth = truth_of(record, self._labels, needed=self._folder is None)
            if truth is None:
                self._unscored += 1
                continue
            self._counts.add(count(truth, pred, self._labels, "model's result"))
            self._scored += 1

    def evaluate(self) -> OrderedDict[str, OrderedDict[str, float]]:
        """`{"sem_seg": {"IoU": …}}` over the images of all processes; empty but on the main process.

        It is empty, too, if no image has a truth.
        """
        gathered = distributed.gather_objects((self._counts, self._scored, self._unscored))
        if not distributed.is_main_process():
            return OrderedDict()
        shares, *numbers = zip(*gathered, strict=True)
        scored, unscored = map(sum, numbers)
        tell_unscored(scored, unscored)
        if unscored and not scored:
            return OrderedDict()
        counts = Counts.empty(self._labels)
        for share in shares:
            counts.add(share)
        return OrderedDict(sem_seg=iou_metrics(counts, self._labels))


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="cityscapes_iou", description="Cityscapes' IoU of saved label maps."
    )
    parser.add_argument("--gt-dir", required=True, help="the folder of the truth's *_instanceIds.png files")
    parser.add_argument("--pred-dir", required=True, help="the folder of the predictions' PNGs of label ids")
    return run_command(parser, lambda args: score_folders(args.gt_dir, args.pred_dir), argv)


def _ids(labels: Labels, category: str) -> list[int]:
    """All labels of a category, ignored ones too."""
    return [label.id for label in labels.values() if label.category == category]


def _iou(counts: Counts, metric: str, ids: list[int], evaluated: list[int]) -> float:
    """The IoU of a group of labels; NaN if it is neither in the ground truth nor predicted.

    Pixels of an evaluated label outside of the group are wrong; what was found on ignored ones is not.
    """
    wrong = counts.confusion[np.setdiff1d(evaluated, ids)][:, ids].sum()
    hits, total = {
        "IoU": (counts.confusion[ids][:, ids], counts.confusion[ids]),
        "IoU_category": (counts.confusion[ids][:, ids], counts.confusion[ids]),
        "iIoU": (counts.objects[0, ids], counts.objects[2, ids]),
        "iIoU_category": (counts.objects[1, ids], counts.objects[2, ids]),
    }[metric]
    union = total.sum() + wrong
    return float(hits.sum() / union) if union else float("nan")


def _mean(values: list[float]) -> float:
    """The mean of the values that are not NaN; NaN if all are."""
    valid = [value for value in values if not math.isnan(value)]
    return sum(valid) / len(valid) if valid else math.nan


if __name__ == "__main__":
    sys.exit(main())
