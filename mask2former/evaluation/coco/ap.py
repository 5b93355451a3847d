"""COCO's average precision of instance masks, by faster-coco-eval.

As a command: `python -m mask2former.evaluation.coco.ap --gt instances.json --results results.json
[--boundary [RATIO]] [--lvis] [--json]`.

The metrics are those of COCO: IoU 0.50 to 0.95, 101 points of recall, at most 100 results an image and
category, sizes by the area of the mask. Boxes in the results are dropped, as they would take the place of the
mask's area. LVIS differs: its ground truth is not complete, so a result counts only where the image was
searched for
its category, and as surplus only where it was searched for all objects of it; and at most 300 results an
image count, of all categories together.

Letters, of the table of precisions: `T` IoU thresholds, `R` recalls, `K` categories, `A` areas.
"""

import argparse
import logging
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mask2former.evaluation.coco.precisions import MOST_LVIS_RESULTS, precisions, uncollected, with_numbers
from mask2former.evaluation.common.boundary import add_boundary_argument, check_ratio, ratio_of
from mask2former.evaluation.common.json_files import (
    SUBMISSION,
    read_json,
    require,
    require_list,
    require_number,
    unique_by,
    write_json,
)
from mask2former.evaluation.common.metadata import DatasetIds, required_attribute
from mask2former.evaluation.common.report import run_command
from mask2former.evaluation.common.rle import encode_masks
from mask2former.utils import comm as distributed
from mask2former.utils.label_maps import Array
from mask2former.utils.storage import PathLike, to_path

Record = dict[str, Any]
Scores = OrderedDict[str, float]

logger = logging.getLogger(__name__)

EVERY = slice(None)
AP50, AP75 = 0, 5  # places among the ten thresholds
METRICS: dict[str, tuple[slice | int, int]] = {  # name -> places in T and in A (all, small, medium, large)
    "AP": (EVERY, 0),
    "AP50": (AP50, 0),
    "AP75": (AP75, 0),
    "APs": (EVERY, 1),
    "APm": (EVERY, 2),
    "APl": (EVERY, 3),
}
FREQUENCIES = {"APr": "r", "APc": "c", "APf": "f"}  # name -> LVIS' mark of rare, common, frequent categories
LVIS_IMAGE_KEYS = ("neg_category_ids", "not_exhaustive_category_ids")


def average_precision(
    truth: Mapping[str, Any],
    results: Sequence[Record],
    *,
    boundary_ratio: float | None = None,
    lvis_style: bool = False,
    gt_file: object = "truth",
    results_file: object = "results",
) -> Scores:
    """AP in percent (AP, AP50, AP75, APs, APm, APl; LVIS': APr, APc, APf too) and `AP-name` of each category.

    A mean over nothing (no object of that size or category in the ground truth) is NaN; no result at all is
    0.

    Args:
        truth: the content of COCO's instance JSON; image ids may be strings.
        results: items with `image_id`, `category_id`, `segmentation` (compressed RLE), `score`.
        boundary_ratio: measure boundary AP, with boundaries of this part of the image's diagonal: IoU is
            the lesser of the masks' and the boundaries'.
        lvis_style: measure by LVIS' rules; images then have `neg_category_ids` and
            `not_exhaustive_category_ids`, categories `frequency`.
        gt_file: name of the ground truth in messages.
        results_file: name of the results in messages.

    Raises:
        ValueError: a key is missing, an image or category unknown, or a mask of another size than its image.
    """
    images = unique_by(require_list(truth, "images", gt_file), "id", gt_file)
    categories = unique_by(require_list(truth, "categories", gt_file), "id", gt_file)
    annotations = require_list(truth, "annotations", gt_file)
    _check_truth(images, categories, annotations, gt_file)
    for place, result in enumerate(results):
        _check_result(result, images, categories, f"{results_file}: item {place}")
    if boundary_ratio is not None:
        check_ratio(boundary_ratio)
    if lvis_style:
        _check_lvis(images, categories, gt_file)
        results = _that_count(results, images, annotations)

    try:
        with uncollected():
            numbered = with_numbers(images, list(categories.values()), annotations, results)
            table = precisions(*numbered, boundary_ratio=boundary_ratio, lvis_style=lvis_style)
    except (RuntimeError, TypeError, ValueError) as error:  # the library's, which name neither file nor item
        raise ValueError(f"{gt_file} or {results_file} holds a mask or flag that is none: {error}") from error
    return _summary(table, [categories[id] for id in sorted(categories)], lvis_style)


def with_boundary(
    truth: Mapping[str, Any], results: Sequence[Record], boundary_ratio: float | None, **options: Any
) -> Scores:
    """`average_precision`, and where there is a ratio, the same by boundaries as `boundary_AP` and so on."""
    scores = average_precision(truth, results, **options)
    if boundary_ratio is not None:
        by_boundary = average_precision(truth, results, boundary_ratio=boundary_ratio, **options)
        scores.update((f"boundary_{name}", value) for name, value in by_boundary.items())
    return scores


class COCOEvaluator:
    """AP of a model's `instances`; writes `coco_instances_results.json`.

    Args:
        metadata: has `json_file` (COCO's instance JSON) and `thing_dataset_id_to_contiguous_id`.
        output_dir: where the results are written; None writes none.
        save_predictions: write them as `submission/instance.json` too.
        boundary: boundary AP besides.
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
        if not to_path(self._gt_file).is_file():  # said before the model runs over all images
            raise ValueError(f"{self._gt_file}: no such file")
        self._category_ids = DatasetIds(metadata, "thing_dataset_id_to_contiguous_id")
        self._ratio = ratio_of(metadata) if boundary else None
        self._files = [] if output_dir is None else [Path(output_dir) / "coco_instances_results.json"]
        if output_dir is not None and save_predictions:
            self._files.append(Path(output_dir) / SUBMISSION / "instance.json")
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._results: list[Record] = []

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

    def evaluate(self) -> OrderedDict[str, OrderedDict[str, float]]:
        """`{"segm": {"AP": …}}` over the images of all processes; empty but on the main process.

        A ground truth without annotations (test-dev) gives no metrics, only the file of results.
        """
        gathered = distributed.gather_objects(self._results)
        if not distributed.is_main_process():
            return OrderedDict()
        results = [result for share in gathered for result in share]
        for file in self._files:
            write_json(file, results)
        truth = read_json(self._gt_file, dict)
        if "annotations" not in truth:
            logger.info("%s has no annotations: the results are saved, not scored", self._gt_file)
            return OrderedDict()
        return OrderedDict(
            segm=with_boundary(
                truth,
                results,
                self._ratio,
                lvis_style=self.lvis_style,
                gt_file=self._gt_file,
                results_file="model's result",
            )
        )


class LVISEvaluator(COCOEvaluator):
    """The same by LVIS' rules; a model should be asked for 300 instances an image."""

    lvis_style = True


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="coco_ap", description="COCO's average precision of saved instance masks."
    )
    parser.add_argument("--gt", required=True, help="COCO's instance JSON file")
    parser.add_argument("--results", required=True, help="the JSON file of results")
    add_boundary_argument(parser)
    parser.add_argument("--lvis", action="store_true", help="LVIS' rules, for LVIS' annotations")
    return run_command(
        parser,
        lambda args: with_boundary(
            read_json(args.gt, dict),
            read_json(args.results, list),
            args.boundary,
            lvis_style=args.lvis,
            gt_file=args.gt,
            results_file=args.results,
        ),
        argv,
    )


def _summary(table: Array, categories: Sequence[Record], lvis_style: bool) -> Scores:
    """The metrics of a table of precisions (T, R, K, A) of the categories (K,)."""
    scores = OrderedDict((name, _mean(table[t, :, :, a])) for name, (t, a) in METRICS.items())
    for name, mark in FREQUENCIES.items() if lvis_style else ():
        group = [place for place, category in enumerate(categories) if category["frequency"] == mark]
        scores[name] = _mean(table[:, :, group, 0])
    for place, category in enumerate(categories):
        scores[f"AP-{category.get('name', category['id'])}"] = _mean(table[:, :, place, 0])
    return scores


def _that_count(
    results: Sequence[Record], images: Mapping[Any, Record], annotations: Sequence[Record]
) -> list[Record]:
    """An image's best results, of equal ones the first, of which those of categories it was searched for."""
    by_image = defaultdict(list)
    for result in results:
        by_image[result["image_id"]].append(result)
    searched = {id: set(image["neg_category_ids"]) for id, image in images.items()}
    for annotation in annotations:
        searched[annotation["image_id"]].add(annotation["category_id"])
    return [
        result
        for id, share in by_image.items()
        for result in sorted(share, key=lambda result: -result["score"])[:MOST_LVIS_RESULTS]
        if result["category_id"] in searched[id]
    ]


def _mean(precisions: Array) -> float:
    """Mean in percent of the entries that have a ground truth; NaN where none has."""
    valid = precisions[precisions > -1]
    return float(100 * valid.mean()) if valid.size else float("nan")


def _check_truth(
    images: Mapping[Any, Record], categories: Mapping[Any, Record], annotations: list[Any], where: object
) -> None:
    """A ValueError unless images have a size and annotations what is needed of them."""
    for id, image in images.items():
        require(image, "height", f"{where}: image {id}")
        require(image, "width", f"{where}: image {id}")
    for place, annotation in enumerate(annotations):
        require_number(annotation, "area", f"{where}: annotations[{place}]")
        _check_known(annotation, images, categories, f"{where}: annotations[{place}]")


def _check_lvis(images: Mapping[Any, Record], categories: Mapping[Any, Record], where: object) -> None:
    """A ValueError unless images and categories have what LVIS says of them."""
    for id, image in images.items():
        for key in LVIS_IMAGE_KEYS:
            require_list(image, key, f"{where}: image {id}")
    for id, category in categories.items():
        mark = require(category, "frequency", f"{where}: category {id}")
        if mark not in FREQUENCIES.values():
            raise ValueError(f"{where}: category {id}: 'frequency' is {mark!r}, expected r, c or f")


def _check_known(record: Any, images: Mapping[Any, Any], categories: Mapping[Any, Any], where: str) -> None:
    """A ValueError unless the record has a mask of a known image and category."""
    require(record, "segmentation", where)
    for key, known in (("image_id", images), ("category_id", categories)):
        value = require(record, key, where)
        if not isinstance(value, (int, str)) or value not in known:  # 3.0 equals 3, but not in the library
            raise ValueError(f"{where}: {key} {value!r} is not in the truth's JSON file")


def _check_result(result: Any, images: Mapping[Any, Any], categories: Mapping[Any, Any], where: str) -> None:
    """A ValueError unless the result is complete and its mask has the size of its image."""
    _check_known(result, images, categories, where)
    require_number(result, "score", where)
    image, mask = images[result["image_id"]], result["segmentation"]
    if not isinstance(mask, Mapping) or not isinstance(mask.get("counts"), (str, bytes)):
        raise ValueError(f"{where}: 'segmentation' is not a compressed RLE with 'size' and 'counts'")
    size = [image["height"], image["width"]]
    if require(mask, "size", where) != size:
        raise ValueError(f"{where}: the mask is {mask['size']} pixels, image {image['id']} is {size}")


if __name__ == "__main__":
    sys.exit(main())
