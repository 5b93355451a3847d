"""COCO's average precision of instance masks, computed by faster-coco-eval.

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

from mask2former.evaluation.coco.precisions import (
    MAX_LVIS_RESULTS,
    garbage_collection_off,
    precisions,
    with_numbers,
)
from mask2former.evaluation.common.boundary import check_ratio, ratio_of
from mask2former.evaluation.common.json_files import (
    SUBMISSION,
    JsonObject,
    get_value,
    index_by,
    load_json,
    write_json,
)
from mask2former.evaluation.common.metadata import DatasetIds, required_attribute
from mask2former.evaluation.common.rle import encode_masks
from mask2former.evaluation.evaluator import Metrics, Results
from mask2former.utils.comm import gather_objects
from mask2former.utils.label_maps import Array
from mask2former.utils.storage import PathLike, to_path

logger = logging.getLogger(__name__)

Table = Mapping[Any, JsonObject]  # by id

ALL = slice(None)
METRICS: dict[str, tuple[slice | int, int]] = {  # name -> index in T, index in A (all, small, medium, large)
    "AP": (ALL, 0),
    "AP50": (0, 0),
    "AP75": (5, 0),
    "APs": (ALL, 1),
    "APm": (ALL, 2),
    "APl": (ALL, 3),
}
LVIS_KEYS = ("neg_category_ids", "not_exhaustive_category_ids")  # of images
FREQUENCIES = {"APr": "r", "APc": "c", "APf": "f"}  # name -> LVIS' mark of rare, common, frequent categories


def average_precision(
    truth: Mapping[str, Any],
    results: Sequence[JsonObject],
    *,
    boundary_ratio: float | None = None,
    lvis_style: bool = False,
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
        gt_file, results_file: names of ground truth and results in messages.

    Raises:
        ValueError: a key is missing, an image or category unknown, or a mask of another size than its image.
    """
    images = index_by(get_value(truth, "images", gt_file, list), "id", gt_file)
    categories = index_by(get_value(truth, "categories", gt_file, list), "id", gt_file)
    annotations = get_value(truth, "annotations", gt_file, list)
    _check_truth(images, categories, annotations, gt_file, lvis_style)
    for place, result in enumerate(results):
        _check_result(result, images, categories, f"{results_file}: item {place}")
    check_ratio(boundary_ratio)
    if lvis_style:
        results = _lvis_results(results, images, annotations)

    try:
        with garbage_collection_off():
            numbered = with_numbers(images, list(categories.values()), annotations, results)
            table = precisions(*numbered, boundary_ratio=boundary_ratio, lvis_style=lvis_style)
    except (RuntimeError, TypeError, ValueError) as error:  # the library's errors name neither file nor item
        raise ValueError(f"{gt_file} or {results_file} has an invalid mask or flag: {error}") from error
    return _metrics_of(table, [categories[id] for id in sorted(categories)], lvis_style)


def with_boundary(
    truth: Mapping[str, Any], results: Sequence[JsonObject], boundary_ratio: float | None, **options: Any
) -> Metrics:
    """Return `average_precision` and, if there is a ratio, boundary AP with the prefix `boundary_`."""
    metrics = average_precision(truth, results, **options)
    if boundary_ratio is not None:
        by_boundary = average_precision(truth, results, boundary_ratio=boundary_ratio, **options)
        metrics.update((f"boundary_{name}", value) for name, value in by_boundary.items())
    return metrics


class COCOEvaluator:
    """Evaluator of a model's `instances` by COCO's AP; writes `coco_instances_results.json`.

    Args:
        metadata: has `json_file` (COCO's instance JSON) and `thing_dataset_id_to_contiguous_id`.
        output_dir: folder of the results file; None writes no files.
        save_predictions: also write the results to `submission/instance.json`.
        boundary: also compute boundary AP.
    """

    lvis_style = False

    def __init__(
        self,
        *,
        metadata: Any,
        output_dir: PathLike | None = None,
        save_predictions: bool = False,
        boundary: bool = False,
    ) -> None:
        self._gt_file = required_attribute(metadata, "json_file")
        if not to_path(self._gt_file).is_file():  # reported before the model runs over all images
            raise ValueError(f"{self._gt_file}: no such file")
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
        return {"segm": with_boundary(truth, results, self._ratio, lvis_style=self.lvis_style, **names)}


class LVISEvaluator(COCOEvaluator):
    """Evaluator by LVIS' rules, for models that return 300 instances per image."""

    lvis_style = True


def _metrics_of(table: Array, categories: Sequence[JsonObject], lvis_style: bool) -> Metrics:
    """Return the metrics of a table of precisions (T, R, K, A), with the categories (K,) in order."""
    metrics = {name: mean_percent(table[t, :, :, a]) for name, (t, a) in METRICS.items()}
    for name, mark in FREQUENCIES.items() if lvis_style else ():
        group = [place for place, category in enumerate(categories) if category["frequency"] == mark]
        metrics[name] = mean_percent(table[:, :, group, 0])
    for place, category in enumerate(categories):
        metrics[f"AP-{category.get('name', category['id'])}"] = mean_percent(table[:, :, place, 0])
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


def _check_truth(
    images: Table, categories: Table, annotations: list[Any], where: object, lvis_style: bool
) -> None:
    keys = {"height": object, "width": object} | (dict.fromkeys(LVIS_KEYS, list) if lvis_style else {})
    for id, image in images.items():
        for key, kind in keys.items():
            get_value(image, key, f"{where}: image {id}", kind)
    for id, category in categories.items() if lvis_style else ():
        mark = get_value(category, "frequency", f"{where}: category {id}")
        if mark not in FREQUENCIES.values():
            raise ValueError(f"{where}: category {id}: 'frequency' is {mark!r}, expected r, c or f")
    for place, annotation in enumerate(annotations):
        get_value(annotation, "area", f"{where}: annotations[{place}]", float)
        _check_known(annotation, images, categories, f"{where}: annotations[{place}]")


def _check_known(record: Any, images: Table, categories: Table, where: str) -> None:
    """Raise ValueError unless the record has a mask, a known image and a known category."""
    get_value(record, "segmentation", where)
    for key, known in (("image_id", images), ("category_id", categories)):
        value = get_value(record, key, where)
        if not isinstance(value, (int, str)) or value not in known:  # 3.0 equals 3, but not in the library
            raise ValueError(f"{where}: {key} {value!r} is not in the ground truth")


def _check_result(result: Any, images: Table, categories: Table, where: str) -> None:
    """Raise ValueError unless the result is complete and its mask has the size of its image."""
    _check_known(result, images, categories, where)
    get_value(result, "score", where, float)
    image, mask = images[result["image_id"]], result["segmentation"]
    if not isinstance(mask, Mapping) or not isinstance(mask.get("counts"), (str, bytes)):
        raise ValueError(f"{where}: 'segmentation' is not a compressed RLE with 'size' and 'counts'")
    size = [image["height"], image["width"]]
    if get_value(mask, "size", where) != size:
        raise ValueError(f"{where}: the mask is {mask['size']} pixels, image {image['id']} is {size}")
