"""COCO's average precision of instance masks, computed by hotcoco.

The rules are COCO's: IoU thresholds 0.50 to 0.95, 101 recalls, at most 100 results per image and category,
object sizes by mask area. Boxes in the results are dropped, as the library would take the sizes from them.

LVIS differs, because its images are not annotated exhaustively. A result counts only if the image was
searched for its category, it is a false positive only if the image was searched for all objects of this
category, and at most 300 results per image count, of all categories together.

Shapes, of the table of precisions: `T` IoU thresholds, `R` recalls, `K` categories, `A` area ranges.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mask2former.evaluation.coco.ground_truth import (
    FREQUENCIES,
    GroundTruth,
    Table,
    checked_ground_truth,
    checked_results,
)
from mask2former.evaluation.coco.precisions import (
    COCO_AREA_LIMITS,
    MAX_LVIS_RESULTS,
    AreaLimits,
    class_agnostic_recall,
    garbage_collection_off,
    id_order,
    precisions,
    with_numbers,
)
from mask2former.evaluation.common.boundary import check_ratio, ratio_of
from mask2former.evaluation.common.json_files import (
    SUBMISSION,
    JsonObject,
    load_json,
    write_json,
)
from mask2former.evaluation.common.metadata import DatasetIds, required_attribute
from mask2former.evaluation.common.report import distinct_names
from mask2former.evaluation.common.rle import encode_masks
from mask2former.evaluation.evaluator import Metrics, Results
from mask2former.utils.comm import gather_objects, is_main_process
from mask2former.utils.label_maps import Array
from mask2former.utils.storage import PathLike

logger = logging.getLogger(__name__)

ALL = slice(None)
METRICS: dict[str, tuple[slice | int, int]] = {  # name -> index in T, index in A (all, small, medium, large)
    "AP": (ALL, 0),
    "AP50": (0, 0),
    "AP75": (5, 0),
    "APs": (ALL, 1),
    "APm": (ALL, 2),
    "APl": (ALL, 3),
}


@garbage_collection_off()
def average_precision(
    truth: Mapping[str, Any],
    results: Sequence[JsonObject],
    *,
    boundary_ratio: float | None = None,
    lvis_style: bool = False,
    crowds_as_objects: bool = False,
    area_limits: AreaLimits = COCO_AREA_LIMITS,
    gt_file: object = "ground truth",
    results_file: object = "results",
) -> Metrics:
    """Return `METRICS` in percent, with `lvis_style` `FREQUENCIES` too, and `AP-name` of each category.

    A mean over nothing (no ground-truth object of this size or category) is NaN.

    Args:
        truth: the content of COCO's instance JSON; image ids may be strings.
        results: items with `image_id`, `category_id`, `segmentation` (compressed RLE), `score`.
        boundary_ratio: compute boundary AP, with boundaries of this fraction of the image diagonal.
        lvis_style: follow LVIS' rules; images need `neg_category_ids` and `not_exhaustive_category_ids`,
            categories need `frequency`.
        crowds_as_objects: ignore `iscrowd` of the ground truth.
        area_limits: in pixels, between small and medium, and between medium and large objects.
        gt_file, results_file: names of ground truth and results in messages.

    Raises:
        ValueError: a key is missing, an image or category unknown, or a mask of another size than its image.
    """
    check_ratio(boundary_ratio)
    checked = checked_ground_truth(truth, gt_file, lvis_style=lvis_style, crowds_as_objects=crowds_as_objects)
    found = checked_results(results, checked, results_file)
    return _score(checked, found, boundary_ratio, lvis_style, area_limits)


def _score(
    truth: GroundTruth,
    results: list[JsonObject],
    boundary_ratio: float | None,
    lvis_style: bool,
    area_limits: AreaLimits,
) -> Metrics:
    if lvis_style:
        results = _lvis_results(results, truth.images, truth.annotations)
    numbered = with_numbers(truth, results)
    table = precisions(
        *numbered, boundary_ratio=boundary_ratio, lvis_style=lvis_style, area_limits=area_limits
    )
    categories = [truth.categories[id] for id in sorted(truth.categories, key=id_order)]
    return metrics_of(table, categories, lvis_style=lvis_style)


@garbage_collection_off()
def with_boundary(
    truth: Mapping[str, Any],
    results: Sequence[JsonObject],
    boundary_ratio: float | None,
    *,
    lvis_style: bool = False,
    crowds_as_objects: bool = False,
    area_limits: AreaLimits = COCO_AREA_LIMITS,
    gt_file: object = "ground truth",
    results_file: object = "results",
) -> Metrics:
    """Return `average_precision` and, if there is a ratio, boundary AP with the prefix `boundary_`."""
    check_ratio(boundary_ratio)
    checked = checked_ground_truth(truth, gt_file, lvis_style=lvis_style, crowds_as_objects=crowds_as_objects)
    found = checked_results(results, checked, results_file)
    metrics = _score(checked, found, None, lvis_style, area_limits)
    if boundary_ratio is not None:
        by_boundary = _score(checked, found, boundary_ratio, lvis_style, area_limits)
        metrics.update((f"boundary_{name}", value) for name, value in by_boundary.items())
    return metrics


@garbage_collection_off()
def average_recall(
    truth: Mapping[str, Any],
    results: Sequence[JsonObject],
    *,
    gt_file: object = "ground truth",
    results_file: object = "results",
    **rules: bool,
) -> float:
    """Return AR@100 without regard to classes, in percent (paper Figure 3: queries as proposals).

    Arguments and errors as of `average_precision`, with `rules` its `lvis_style` and `crowds_as_objects`.
    """
    checked = checked_ground_truth(truth, gt_file, **rules)
    numbered = with_numbers(checked, checked_results(results, checked, results_file))
    return 100 * class_agnostic_recall(*numbered)


class COCOEvaluator:
    """Evaluator of a model's `instances` by COCO's AP; writes `coco_instances_results.json`.

    Args:
        metadata: has `json_file` (COCO's instance JSON), `thing_dataset_id_to_contiguous_id`, and may have
            `crowds_as_objects` and `area_limits`, as `average_precision` has them.
        output_dir: folder of the results file; None writes no files.
        save_predictions: also write the results to `submission/instance.json`.
        boundary: also compute boundary AP.
        proposals: also compute AR@100 without regard to classes.
    """

    lvis_style = False

    def __init__(
        self,
        *,
        metadata: Any,
        output_dir: PathLike | None = None,
        save_predictions: bool = False,
        boundary: bool = False,
        proposals: bool = False,
    ) -> None:
        self._proposals = proposals
        self._gt_file = required_attribute(metadata, "json_file")
        self._rules = {
            "lvis_style": self.lvis_style,
            "crowds_as_objects": bool(getattr(metadata, "crowds_as_objects", False)),
        }
        self._area_limits = getattr(metadata, "area_limits", COCO_AREA_LIMITS)
        # Errors are reported before the model is trained. The file is read again by each evaluation: kept, it
        # would stay in memory through the training.
        if is_main_process():
            truth = load_json(self._gt_file, dict)
            if "annotations" in truth:
                checked_ground_truth(truth, self._gt_file, **self._rules)
        self._category_ids = DatasetIds(metadata, "thing_dataset_id_to_contiguous_id")
        self._ratio = ratio_of(metadata) if boundary else None
        self._files = [] if output_dir is None else [Path(output_dir) / "coco_instances_results.json"]
        if output_dir is not None and save_predictions:
            self._files.append(Path(output_dir) / SUBMISSION / "instance.json")
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._results: list[JsonObject] = []

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Add a batch: inputs with `image_id`, outputs with `instances`: pred_masks, pred_classes, scores."""
        for record, output in zip(inputs, outputs, strict=True):
            instances = output["instances"]
            codes = encode_masks(instances.pred_masks)
            classes, scores = instances.pred_classes.tolist(), instances.scores.tolist()
            self._results += [
                {
                    "image_id": record["image_id"],
                    "category_id": self._category_ids[category],
                    "segmentation": code,
                    "score": score,
                }
                for code, category, score in zip(codes, classes, scores, strict=True)
            ]

    def evaluate(self) -> Results:
        """Return `{"segm": {"AP": …}}` over the images of all processes; nothing except on the main process.

        If the ground truth has no annotations (test-dev), write the results only and return nothing.
        """
        shares = gather_objects(self._results)
        if not shares:
            return {}
        results = [result for share in shares for result in share]
        for file in self._files:
            write_json(file, results)
        truth = load_json(self._gt_file, dict)
        if "annotations" not in truth:
            logger.info("%s has no annotations: the results are saved, not scored", self._gt_file)
            return {}
        names = {"gt_file": self._gt_file, "results_file": "model's result"}
        limits = self._area_limits
        metrics = with_boundary(truth, results, self._ratio, **self._rules, area_limits=limits, **names)
        if self._proposals:
            metrics["AR@100"] = average_recall(truth, results, **self._rules, **names)
        return {"segm": metrics}


class LVISEvaluator(COCOEvaluator):
    """Evaluator by LVIS' rules, for models that return 300 instances per image."""

    lvis_style = True


def metrics_of(table: Array, categories: Sequence[JsonObject], *, lvis_style: bool = False) -> Metrics:
    """Return the metrics of a table of precisions (T, R, K, A), with the categories (K,) in order."""
    metrics = {name: mean_percent(table[t, :, :, a]) for name, (t, a) in METRICS.items()}
    for name, mark in FREQUENCIES.items() if lvis_style else ():
        group = [place for place, category in enumerate(categories) if category["frequency"] == mark]
        metrics[name] = mean_percent(table[:, :, group, 0])
    class_names = [str(category.get("name", category["id"])) for category in categories]
    for place, name in enumerate(distinct_names(class_names)):
        metrics[f"AP-{name}"] = mean_percent(table[:, :, place, 0])
    return metrics


def mean_percent(precisions: Array) -> float:
    """Return the mean in percent of the entries that are not NaN; NaN if all are."""
    valid = precisions[np.isfinite(precisions)]
    return float(100 * valid.mean()) if valid.size else float("nan")


def _lvis_results(
    results: Sequence[JsonObject], images: Table, annotations: Sequence[JsonObject]
) -> list[JsonObject]:
    """Return the best results of each image, without categories for which the image was not searched."""
    by_image = defaultdict(list)
    for result in results:
        by_image[result["image_id"]].append(result)
    searched = {id: set(image["neg_category_ids"]) for id, image in images.items()}
    for annotation in annotations:
        searched[annotation["image_id"]].add(annotation["category_id"])
    return [
        result
        for id, share in by_image.items()
        for result in sorted(share, key=lambda result: -result["score"])[:MAX_LVIS_RESULTS]
        if result["category_id"] in searched[id]
    ]
