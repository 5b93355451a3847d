"""Mean IoU of semantic segmentation, from one confusion matrix over the dataset.

Shapes: `K` classes, `H, W` the image's sides in pixels. A confusion matrix is (K + 1, K + 1) pixels: rows are
the ground truth, columns the prediction, and the last row and column are the ignored label. A pixel that the
ground truth ignores counts nowhere. A pixel that the prediction ignores is a miss of its true class, and no
false positive.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mask2former.evaluation.common.json_files import SUBMISSION, JsonObject, get_value, write_json
from mask2former.evaluation.common.metadata import DatasetIds, required_attribute
from mask2former.evaluation.common.report import distinct_names
from mask2former.evaluation.common.rle import encode_masks
from mask2former.evaluation.evaluator import Metrics, Results
from mask2former.structures import runs
from mask2former.utils.comm import gather_objects
from mask2former.utils.label_maps import (
    IGNORE_LABEL,
    Array,
    read_label_map,
    read_segment_ids,
    relabel,
    semantic_from_panoptic,
    upright,
    write_label_map,
)
from mask2former.utils.messages import InputError, reason
from mask2former.utils.storage import PathLike, files_below, is_file, to_path

logger = logging.getLogger(__name__)

TRUTH_KEYS = ("sem_seg_file_name", "pan_seg_file_name")
SUFFIXES = (".png", ".tif", ".tiff")  # of ground-truth files; predictions have the same suffix or .png


def bins_of(labels: Array, num_classes: int, ignore_label: int, where: object) -> Array:
    """Return labels with K for the ignored one; raise ValueError if another is not in [0, K)."""
    ignored = labels == ignore_label
    beyond = ~ignored & ((labels < 0) | (labels >= num_classes))
    if beyond.any():
        raise InputError(
            f"{where}: label {labels[beyond][0]} is neither one of the {num_classes} classes "
            f"nor the ignored label {ignore_label}"
        )
    return np.where(ignored, num_classes, labels.astype(np.int64))


def confusion_matrix(
    truth: Array, pred: Array, num_classes: int, ignore_label: int, names: tuple[object, object]
) -> Array:
    """Return the confusion matrix (K + 1, K + 1) of two label maps (H, W), which messages call `names`.

    Raises:
        ValueError: the maps differ in size, or a label is neither a class nor the ignored one.
    """
    if truth.shape != pred.shape:
        raise InputError(f"{names[1]}: the prediction is {pred.shape} pixels, the ground truth {truth.shape}")
    true, found = truth.ravel(), pred.ravel()
    starts, ends = runs(true, found).T
    rows, columns = (
        bins_of(labels[starts], num_classes, ignore_label, name)
        for labels, name in zip((true, found), names, strict=True)
    )
    side = num_classes + 1
    pixels = np.bincount(rows * side + columns, ends - starts, side * side)
    return pixels.astype(np.int64).reshape(side, side)


def mean_iou(confusion: Array, class_names: Sequence[str]) -> Metrics:
    """Return mIoU, fwIoU (weighted by frequency), mACC, pACC, and `IoU-`, `ACC-` of each class, in percent.

    Classes without a ground-truth pixel are NaN, and are left out of the means.
    """
    classes = slice(len(class_names))
    hits = confusion.diagonal()[classes].astype(np.float64)
    truth = np.where(confusion[classes].any(1), confusion[classes].sum(1), np.nan)
    predicted = confusion[classes, classes].sum(0)
    iou, accuracy, share = hits / (truth + predicted - hits), hits / truth, truth / max(np.nansum(truth), 1)

    present = np.isfinite(truth)
    means = {"mIoU": np.nan, "fwIoU": np.nan, "mACC": np.nan, "pACC": np.nan}
    if present.any():
        means = {
            "mIoU": iou[present].mean(),
            "fwIoU": (iou * share)[present].sum(),
            "mACC": accuracy[present].mean(),
            "pACC": (accuracy * share)[present].sum(),
        }
    per_class = {
        f"{metric}-{name}": value
        for metric, values in (("IoU", iou), ("ACC", accuracy))
        for name, value in zip(distinct_names(class_names), values, strict=True)
    }
    return {name: float(100 * value) for name, value in {**means, **per_class}.items()}


def mean_iou_of_folders(
    gt_dir: PathLike,
    pred_dir: PathLike,
    *,
    label_ids: Sequence[int],
    pred_label_ids: Sequence[int] | None = None,
    ignore_label: int = IGNORE_LABEL,
    workers: int = 1,
) -> Metrics:
    """Return the metrics of a folder of label maps; predictions have the same names below `pred_dir`.

    Args:
        gt_dir: folder of label maps of 8 or 16 bits, at any depth.
        pred_dir: folder of the predictions; other files in it are ignored.
        label_ids: the labels that are classes.
        pred_label_ids: the labels of the same classes in the predictions, if they differ.
        ignore_label: the label of pixels without a class.
        workers: threads that read and count.

    Raises:
        ValueError: there is no image, a prediction is missing, sizes differ, or a label is out of range.
    """
    pred_label_ids = label_ids if pred_label_ids is None else pred_label_ids
    for labels in (label_ids, pred_label_ids):
        if not labels or len(set(labels)) < len(labels):
            raise InputError(f"the classes are the labels {[*labels]}: expected 1 or more, and none twice")
    if len(pred_label_ids) != len(label_ids):
        raise InputError(
            f"the predictions have {len(pred_label_ids)} classes, the ground truth {len(label_ids)}"
        )
    names = sorted(path.relative_to(to_path(gt_dir)) for path in files_below(gt_dir, SUFFIXES))
    if not names:
        raise InputError(f"{gt_dir}: no PNG or TIFF files")
    count = partial(_count, label_ids, pred_label_ids, ignore_label)
    pairs = [(to_path(gt_dir) / name, to_path(pred_dir) / name) for name in names]
    with ThreadPoolExecutor(workers) as pool:
        counted = tqdm(pool.map(count, pairs), "mIoU", len(pairs), disable=None)
        confusion = sum(counted, np.zeros((len(label_ids) + 1, len(label_ids) + 1), np.int64))
    return mean_iou(confusion, [str(label) for label in label_ids])


def _count(
    label_ids: Sequence[int], pred_label_ids: Sequence[int], ignore_label: int, pair: tuple[Path, Path]
) -> Array:
    """Return the confusion matrix of two files; the prediction, the second, may have .png for its suffix."""
    num_classes = len(label_ids)
    truth, named = pair
    files = truth, named if named.is_file() else named.with_suffix(".png")
    if isinstance(label_ids, range) and isinstance(pred_label_ids, range):
        true, found = map(read_label_map, files)
        return confusion_matrix(true, found, num_classes, ignore_label, files)
    tables = [_places(ids, ignore_label) for ids in (label_ids, pred_label_ids)]
    true, found = map(_read_relabeled, files, tables)
    return confusion_matrix(true, found, num_classes, num_classes, files)


def _places(label_ids: Sequence[int], ignore_label: int) -> dict[int, int]:
    """Return the class of each label, and K for the ignored one."""
    ignored = {ignore_label: len(label_ids)} if ignore_label >= 0 else {}  # no pixel has a negative label
    return {label: place for place, label in enumerate(label_ids)} | ignored


def _read_relabeled(file: PathLike, table: Mapping[int, int]) -> Array:
    try:
        return relabel(read_label_map(file), table)
    except ValueError as error:
        raise InputError(f"{file}: {reason(error, file)}") from error


class SemSegEvaluator:
    """Evaluator of a model's `label_map` or `sem_seg` by mean IoU; writes `sem_seg_predictions.json`.

    Args:
        metadata: has `stuff_classes` (the names of all K classes) and `ignore_label`; if it has
            `stuff_dataset_id_to_contiguous_id`, the file holds the dataset's category ids.
        output_dir: folder of the predictions, one RLE per image and class; None writes no files.
        save_predictions: also write label maps `submission/semantic/<name of the image>.png`, with the
            `official_label_ids` and `official_ignore_label` of the metadata if it has them. Images then need
            no ground truth.
    """

    def __init__(
        self, *, metadata: Any, output_dir: PathLike | None = None, save_predictions: bool = False
    ) -> None:
        self._names: list[str] = list(required_attribute(metadata, "stuff_classes"))
        self._ignore_label: int = required_attribute(metadata, "ignore_label")
        has_ids = getattr(metadata, "stuff_dataset_id_to_contiguous_id", None) is not None
        self._dataset_ids = DatasetIds(metadata, "stuff_dataset_id_to_contiguous_id") if has_ids else {}
        self._output_dir = None if output_dir is None else Path(output_dir)
        save = self._output_dir is not None and save_predictions
        self._folder = Path(output_dir or "") / SUBMISSION / "semantic" if save else None
        classes = getattr(metadata, "official_label_ids", range(len(self._names)))
        ignored = getattr(metadata, "official_ignore_label", self._ignore_label)
        labels = [*classes, max(ignored, 0)]
        self._official = np.array(labels, np.uint8 if max(labels) < 256 else np.uint16)
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        side = len(self._names) + 1
        self._confusion = np.zeros((side, side), np.int64)
        self._predictions: list[JsonObject] = []
        self._written: list[str] = []

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Count a batch: outputs with `label_map` (H, W) or `sem_seg` scores (K, H, W), inputs with a file.

        The file is `sem_seg_file_name` or, without it, `pan_seg_file_name` with `segments_info`.

        Raises:
            ValueError: an image has no ground truth, a label is not a class, or sizes differ.
        """
        for record, output in zip(inputs, outputs, strict=True):
            labels = (output["label_map"] if "label_map" in output else output["sem_seg"].argmax(0)).cpu()
            pred, num_classes = labels.numpy(), len(self._names)
            if self._output_dir is not None:
                self._predictions += [
                    {
                        "file_name": str(record["file_name"]),
                        "category_id": self._dataset_ids.get(label, label),
                        "segmentation": encode_masks((labels == label)[None])[0],
                    }
                    for label in labels.unique().tolist()
                ]
            if self._folder is not None:
                self._written.append(f"{Path(record['file_name']).stem}.png")
                self._folder.mkdir(parents=True, exist_ok=True)
                bins = bins_of(pred, num_classes, self._ignore_label, "model's result")
                write_label_map(self._folder / self._written[-1], self._official[bins])
                if not any(key in record for key in TRUTH_KEYS):
                    continue
            file, true = true_labels(record, self._ignore_label)
            names = file, f"model's result for {file}"
            self._confusion += confusion_matrix(true, pred, num_classes, self._ignore_label, names)

    def evaluate(self) -> Results:
        """Return `{"sem_seg": {"mIoU": …}}` over all processes; nothing except on the main process.

        If predictions are saved and no image has a ground truth, there are no metrics.
        """
        shares = gather_objects((self._confusion, self._predictions, self._written))
        if not shares:
            return {}
        confusions, predictions, written = zip(*shares, strict=True)
        if self._output_dir is not None:
            write_json(self._output_dir / "sem_seg_predictions.json", list(chain(*predictions)))
        if repeated := [name for name, count in Counter(chain(*written)).items() if count > 1]:
            logger.error(
                "%s: images of different folders have the same name; only the last label map of each was "
                "kept: %s",
                *(self._folder, ", ".join(repeated)),
            )
        confusion = np.sum(confusions, axis=0)
        if self._folder is not None and not confusion.any():
            logger.info("no image has a ground truth: label maps are saved in %s, not scored", self._folder)
            return {}
        return {"sem_seg": mean_iou(confusion, self._names)}


def true_labels(record: Mapping[str, Any], ignore_label: int) -> tuple[str, Array]:
    """Return the ground-truth file of an image, semantic or else panoptic, and its labels (H, W).

    `sem_seg_label_ids` translates the values of a semantic PNG. In a panoptic PNG, the pixels of a listed
    segment (crowds too) have its class, and all others are ignored.

    Raises:
        ValueError: the image has neither file, or a label has no translation.
    """
    semantic, panoptic = record.get("sem_seg_file_name"), record.get("pan_seg_file_name")
    if panoptic is None or (semantic is not None and is_file(to_path(semantic))):
        file = str(get_value(record, "sem_seg_file_name", f"image {record.get('image_id')}"))
        table = record.get("sem_seg_label_ids")
        return file, upright(read_label_map(file) if table is None else _read_relabeled(file, table), record)
    segments = get_value(record, "segments_info", panoptic)
    ids = upright(read_segment_ids(panoptic), record)
    return str(panoptic), semantic_from_panoptic(ids, segments, ignore_label)
