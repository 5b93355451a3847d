"""COCO's average precision of instance masks, by faster-coco-eval.

As a command: `python -m mask2former.evaluation.coco_ap --gt instances.json --results results.json [--json]`.

The metrics are those of COCO: IoU 0.50 to 0.95, 101 points of recall, at most 100 results an image, sizes by
the area of the mask. Boxes in the results are dropped, as they would take the place of the mask's area.

Letters, of the table of precisions: `T` IoU thresholds, `R` recalls, `K` categories, `A` areas.
"""

import argparse
import gc
import logging
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core.mask import area

from mask2former import distributed
from mask2former.evaluation.json_files import (
    read_json,
    require,
    require_list,
    require_number,
    unique_by,
    write_json,
)
from mask2former.evaluation.metadata import DatasetIds, required_attribute
from mask2former.evaluation.report import run_command
from mask2former.evaluation.rle import encode_masks
from mask2former.label_files import Array, PathLike

Record = dict[str, Any]

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


def average_precision(
    truth: Mapping[str, Any],
    results: Sequence[Record],
    *,
    gt_file: object = "truth",
    results_file: object = "results",
) -> OrderedDict[str, float]:
    """AP in percent (AP, AP50, AP75, APs, APm, APl) and `AP-name` of each category.

    A mean over nothing (no object of that size or category in the truth) is NaN; no result at all is 0.

    Args:
        truth: the content of COCO's instance JSON; image ids may be strings.
        results: items with `image_id`, `category_id`, `segmentation` (compressed RLE), `score`.
        gt_file: name of the truth in messages.
        results_file: name of the results in messages.

    Raises:
        ValueError: a key is missing, an image or category unknown, or a mask of another size than its image.
    """
    images = unique_by(require_list(truth, "images", gt_file), "id", gt_file)
    categories = unique_by(require_list(truth, "categories", gt_file), "id", gt_file)
    annotations = require_list(truth, "annotations", gt_file)
    for id, image in images.items():
        require(image, "height", f"{gt_file}: image {id}")
        require(image, "width", f"{gt_file}: image {id}")
    for place, annotation in enumerate(annotations):
        require_number(annotation, "area", f"{gt_file}: annotations[{place}]")
        _check_known(annotation, images, categories, f"{gt_file}: annotations[{place}]")
    for place, result in enumerate(results):
        _check_result(result, images, categories, f"{results_file}: item {place}")

    try:
        with uncollected():
            precisions = _precisions(*_with_numbers(images, list(categories.values()), annotations, results))
    except (RuntimeError, TypeError, ValueError) as error:  # the library's, which name neither file nor item
        raise ValueError(f"{gt_file} or {results_file} holds a mask or flag that is none: {error}") from error
    scores = OrderedDict((name, _mean(precisions[t, :, :, a])) for name, (t, a) in METRICS.items())
    for place, category in enumerate(sorted(categories)):
        scores[f"AP-{categories[category].get('name', category)}"] = _mean(precisions[:, :, place, 0])
    return scores


class COCOEvaluator:
    """AP of a model's `instances`; writes `coco_instances_results.json`.

    Args:
        metadata: has `json_file` (COCO's instance JSON) and `thing_dataset_id_to_contiguous_id`.
        output_dir: where the results are written; None writes none.
    """

    def __init__(self, *, metadata: Any, output_dir: PathLike | None = None) -> None:
        self._gt_file = required_attribute(metadata, "json_file")
        if not Path(self._gt_file).is_file():  # said before the model runs over all pictures
            raise ValueError(f"{self._gt_file}: no such file")
        self._category_ids = DatasetIds(metadata, "thing_dataset_id_to_contiguous_id")
        self._output_dir = Path(output_dir) if output_dir is not None else None
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

        A truth without annotations (test-dev) gives no metrics, only the file of results.
        """
        gathered = distributed.gather_objects(self._results)
        if not distributed.is_main_process():
            return OrderedDict()
        results = [result for share in gathered for result in share]
        if self._output_dir is not None:
            write_json(self._output_dir / "coco_instances_results.json", results)
        truth = read_json(self._gt_file, dict)
        if "annotations" not in truth:
            logger.info("%s has no annotations: the results are saved, not scored", self._gt_file)
            return OrderedDict()
        return OrderedDict(
            segm=average_precision(truth, results, gt_file=self._gt_file, results_file="model's result")
        )


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="coco_ap", description="COCO's average precision of saved instance masks."
    )
    parser.add_argument("--gt", required=True, help="COCO's instance JSON file")
    parser.add_argument("--results", required=True, help="the JSON file of results")
    return run_command(
        parser,
        lambda args: average_precision(
            read_json(args.gt, dict),
            read_json(args.results, list),
            gt_file=args.gt,
            results_file=args.results,
        ),
        argv,
    )


def _with_numbers(
    images: Mapping[Any, Record],
    categories: list[Record],
    annotations: list[Record],
    results: Sequence[Record],
) -> tuple[COCO, COCO]:
    """Truth and results with images and annotations numbered from 1, as the library wants them.

    Images are numbered in the order of their ids, for that order decides between equal scores.
    """
    in_order = sorted(images, key=lambda image: (isinstance(image, str), image))
    numbers = {image: number for number, image in enumerate(in_order, 1)}
    truth = {
        "images": [{**image, "id": numbers[image["id"]]} for image in images.values()],
        "categories": categories,
        "annotations": [
            {"iscrowd": 0, **annotation, "id": number, "image_id": numbers[annotation["image_id"]]}
            for number, annotation in enumerate(annotations, 1)
        ],
    }
    # Not by `loadRes`, which takes areas and boxes one by one
    areas = area([result["segmentation"] for result in results]).tolist() if results else []
    found = [
        {
            "id": number,
            "image_id": numbers[result["image_id"]],
            "area": pixels,
            "iscrowd": 0,
            **{key: result[key] for key in ("category_id", "segmentation", "score")},
        }
        for number, (result, pixels) in enumerate(zip(results, areas, strict=True), 1)
    ]
    return COCO(truth), COCO({**truth, "annotations": found})


def _precisions(truth: COCO, found: COCO) -> Array:
    """The table of precisions (T, R, K, A) at 100 results an image; -1 where the truth has no object."""
    evaluation = evaluation_of(truth, found)
    if not truth.imgs or not truth.cats:
        params = evaluation.params
        return np.full((len(params.iouThrs), len(params.recThrs), len(truth.cats), len(params.areaRng)), -1.0)
    evaluation.evaluate()
    evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"])[..., -1]


def evaluation_of(truth: COCO, found: COCO) -> COCOeval_faster:
    """The library's evaluation of masks, as we use it."""
    evaluation = COCOeval_faster(truth, found, "segm")
    # Later versions compute IoUs in threads; those of an image and category take too little to gain by it
    evaluation.rle_iou_max_workers = 1
    return evaluation


@contextmanager
def uncollected() -> Iterator[None]:
    """No search for garbage meanwhile: it would go through all records again and again, and find none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _mean(precisions: Array) -> float:
    """Mean in percent of the entries that have a truth; NaN where none has."""
    valid = precisions[precisions > -1]
    return float(100 * valid.mean()) if valid.size else float("nan")


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
