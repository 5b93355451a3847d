"""Mean IoU of semantic segmentation, from one confusion matrix over the data set.

As a command on two folders of label PNGs: `python -m mask2former.evaluation.mean_iou --gt-dir truth
--pred-dir predictions --num-classes K [--ignore-label 255] [--json]`.

Letters: `K` classes, `H, W` the image's sides in pixels. A confusion matrix is (K + 1, K + 1) pixels, rows
the truth, columns the prediction; the last row and column are the ignored label. A pixel with ignored truth
counts nowhere; one that is predicted as ignored is a miss of its true class, and of no predicted one.
"""

import argparse
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from mask2former import distributed
from mask2former.evaluation.json_files import require, write_json
from mask2former.evaluation.metadata import DatasetIds, required_attribute
from mask2former.evaluation.report import run_command
from mask2former.evaluation.rle import encode_masks
from mask2former.label_files import (
    IGNORE_LABEL,
    Array,
    PathLike,
    read_label_map,
    read_segment_ids,
    semantic_from_panoptic,
)


def bins_of(labels: Array, num_classes: int, ignore_label: int, where: object) -> Array:
    """Labels (H, W) with the ignored one replaced by K; a ValueError if another is not a class in [0, K)."""
    ignored = labels == ignore_label
    beyond = ~ignored & ((labels < 0) | (labels >= num_classes))
    if beyond.any():
        raise ValueError(
            f"{where}: label {labels[beyond][0]} is neither one of the {num_classes} classes "
            f"nor the ignored label {ignore_label}"
        )
    return np.where(ignored, num_classes, labels.astype(np.int64))


def confusion_matrix(truth_bins: Array, pred_bins: Array, num_classes: int) -> Array:
    """Pixels of each pair of labels, (K + 1, K + 1), of two maps (H, W) of bins."""
    side = num_classes + 1
    pairs = (truth_bins * side + pred_bins).ravel()
    return np.bincount(pairs, minlength=side * side).reshape(side, side)


def mean_iou(confusion: Array, class_names: Sequence[str]) -> OrderedDict[str, float]:
    """In percent: mIoU, fwIoU (weighted by frequency), mACC, pACC, and `IoU-`, `ACC-` of each class.

    Classes without a pixel of truth are left out of the means and are NaN themselves.
    """
    classes = slice(len(class_names))
    hits = confusion.diagonal()[classes].astype(np.float64)
    truth = np.where(confusion[classes].any(1), confusion[classes].sum(1), np.nan)
    predicted = confusion[classes, classes].sum(0)
    iou, accuracy, share = hits / (truth + predicted - hits), hits / truth, truth / max(np.nansum(truth), 1)

    present = np.isfinite(truth)
    means = {
        "mIoU": iou[present].mean() if present.any() else np.nan,
        "fwIoU": (iou * share)[present].sum() if present.any() else np.nan,
        "mACC": accuracy[present].mean() if present.any() else np.nan,
        "pACC": (accuracy * share)[present].sum() if present.any() else np.nan,
    }
    per_class = {
        f"{metric}-{name}": value
        for metric, values in (("IoU", iou), ("ACC", accuracy))
        for name, value in zip(class_names, values, strict=True)
    }
    return OrderedDict((name, float(100 * value)) for name, value in {**means, **per_class}.items())


def mean_iou_of_folders(
    gt_dir: PathLike, pred_dir: PathLike, *, num_classes: int, ignore_label: int = IGNORE_LABEL
) -> OrderedDict[str, float]:
    """The metrics of a folder of label PNGs; the predictions have the same names below `pred_dir`.

    Raises:
        ValueError: there is no PNG, a prediction is missing, sizes differ, or a label is out of range.
    """
    if num_classes < 1:
        raise ValueError(f"the number of classes is {num_classes}, expected 1 or more")
    names = sorted(path.relative_to(gt_dir) for path in Path(gt_dir).rglob("*.png"))
    if not names:
        raise ValueError(f"{gt_dir}: no PNG files")
    confusion = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    for name in tqdm(names, "mIoU", disable=None):
        files = Path(gt_dir) / name, Path(pred_dir) / name
        truth, pred = (bins_of(read_label_map(file), num_classes, ignore_label, file) for file in files)
        _check_sizes(truth, pred, files[1])
        confusion += confusion_matrix(truth, pred, num_classes)
    return mean_iou(confusion, [str(number) for number in range(num_classes)])


class SemSegEvaluator:
    """Mean IoU of a model's `label_map` or `sem_seg`; writes `sem_seg_predictions.json`, its RLEs.

    Args:
        metadata: has `stuff_classes` (the names of all K classes) and `ignore_label`; where it has
            `stuff_dataset_id_to_contiguous_id`, the file holds the data set's category ids.
        output_dir: where the predictions are written; None writes none.
    """

    def __init__(self, *, metadata: Any, output_dir: PathLike | None = None) -> None:
        self._names: list[str] = list(required_attribute(metadata, "stuff_classes"))
        self._ignore_label: int = required_attribute(metadata, "ignore_label")
        has_ids = getattr(metadata, "stuff_dataset_id_to_contiguous_id", None) is not None
        self._dataset_ids = DatasetIds(metadata, "stuff_dataset_id_to_contiguous_id") if has_ids else {}
        self._output_dir = Path(output_dir) if output_dir is not None else None
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        side = len(self._names) + 1
        self._confusion = np.zeros((side, side), np.int64)
        self._predictions: list[dict[str, Any]] = []

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Count a batch: outputs with a `label_map` (H, W) or `sem_seg` scores (K, H, W), inputs with truth.

        That is the file `sem_seg_file_name`, or, where there is none, `pan_seg_file_name` with
        `segments_info`.

        Raises:
            ValueError: no file of truth, a label that is no class, or a size other than the prediction's.
        """
        for record, output in zip(inputs, outputs, strict=True):
            pred = (output["label_map"] if "label_map" in output else output["sem_seg"].argmax(0)).cpu()
            file, labels = true_labels(record, self._ignore_label)
            truth = bins_of(labels, len(self._names), self._ignore_label, file)
            _check_sizes(truth, pred.numpy(), file)
            self._confusion += confusion_matrix(truth, pred.numpy(), len(self._names))
            if self._output_dir is not None:
                self._predictions += self._encode(pred, str(record["file_name"]))

    def evaluate(self) -> OrderedDict[str, OrderedDict[str, float]]:
        """`{"sem_seg": {"mIoU": …}}` over the images of all processes; empty but on the main process."""
        gathered = distributed.gather_objects((self._confusion, self._predictions))
        if not distributed.is_main_process():
            return OrderedDict()
        if self._output_dir is not None:
            predictions = [prediction for _, share in gathered for prediction in share]
            write_json(self._output_dir / "sem_seg_predictions.json", predictions)
        confusion = np.sum([share for share, _ in gathered], axis=0)
        return OrderedDict(sem_seg=mean_iou(confusion, self._names))

    def _encode(self, labels: Tensor, file_name: str) -> list[dict[str, Any]]:
        """A label map (H, W) as one RLE for each class that is in it."""
        return [
            {
                "file_name": file_name,
                "category_id": self._dataset_ids.get(label, label),
                "segmentation": encode_masks((labels == label)[None])[0],
            }
            for label in labels.unique().tolist()
        ]


def true_labels(record: Mapping[str, Any], ignore_label: int) -> tuple[str, Array]:
    """The file of an image's truth and its labels (H, W), from the semantic PNG or else the panoptic one.

    Of a panoptic PNG every listed segment, crowds too, is its class, and the rest is ignored.

    Raises:
        ValueError: the image has neither file.
    """
    semantic, panoptic = record.get("sem_seg_file_name"), record.get("pan_seg_file_name")
    if panoptic is None or (semantic is not None and Path(semantic).is_file()):
        file = str(require(record, "sem_seg_file_name", f"image {record.get('image_id')}"))
        return file, read_label_map(file)
    segments = require(record, "segments_info", panoptic)
    return str(panoptic), semantic_from_panoptic(read_segment_ids(panoptic), segments, ignore_label)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="mean_iou", description="Mean IoU of two folders of label PNGs.")
    parser.add_argument("--gt-dir", required=True, help="the folder of the truth")
    parser.add_argument("--pred-dir", required=True, help="the folder of the predictions, of the same names")
    parser.add_argument(
        "--num-classes", required=True, type=int, help="classes are 0 to this number less one"
    )
    parser.add_argument("--ignore-label", default=IGNORE_LABEL, type=int, help="the label that is no class")
    return run_command(
        parser,
        lambda args: mean_iou_of_folders(
            args.gt_dir, args.pred_dir, num_classes=args.num_classes, ignore_label=args.ignore_label
        ),
        argv,
    )


def _check_sizes(truth: Array, pred: Array, where: object) -> None:
    if truth.shape != pred.shape:
        raise ValueError(f"{where}: the prediction is {pred.shape} pixels, the truth {truth.shape}")


if __name__ == "__main__":
    sys.exit(main())
