"""Cityscapes' average precision of instance masks and, if asked for, COCO's boundary AP of the same masks.

Predictions in files are in the benchmark's format, see `submission`.

Shapes: `H, W` the image's sides in pixels, `P` predictions, `C` labels, `T` IoU thresholds.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mask2former.evaluation.cityscapes.evaluator import CityscapesEvaluator, score_files
from mask2former.evaluation.cityscapes.ground_truth import LABELS, THINGS, InstanceMap
from mask2former.evaluation.cityscapes.matching import Matches, joined, match, precision_table
from mask2former.evaluation.cityscapes.submission import (
    FoundObjects,
    read_objects,
    run_length_masks,
    write_objects,
)
from mask2former.evaluation.coco.ap import average_precision, mean_percent
from mask2former.evaluation.common.boundary import RATIOS
from mask2former.evaluation.common.json_files import JsonObject
from mask2former.evaluation.common.metadata import DatasetIds
from mask2former.evaluation.common.rle import encode_masks
from mask2former.evaluation.evaluator import Metrics
from mask2former.structures import RunLengthMasks, runs
from mask2former.utils.storage import PathLike


class ScoredImage(NamedTuple):
    """Matches of an image and, for boundary AP, its `images`, `annotations` and results for COCO."""

    matches: Matches
    coco: dict[str, list[JsonObject]] | None = None


def score_image(image_id: object, truth: InstanceMap, found: FoundObjects, *, boundary: bool) -> ScoredImage:
    """Compare the predicted objects of an image with its ground truth.

    Raises:
        ValueError: the masks and the ground truth differ in size.
    """
    matches = match(truth, *found)
    if not boundary:
        return ScoredImage(matches)
    height, width = truth.pixels.shape
    results = [
        {"image_id": image_id, "category_id": label_id, "segmentation": code, "score": score}
        for code, label_id, score in zip(encode_masks(found.masks), *found[1:], strict=True)
        if label_id in THINGS
    ]
    image = {"id": image_id, "height": height, "width": width}
    annotations = _annotations(image_id, truth)
    return ScoredImage(matches, {"images": [image], "annotations": annotations, "results": results})


def summary(images: Sequence[ScoredImage]) -> Metrics:
    """Return AP and AP50 in percent, of all labels and of each, and boundary AP if the images have it.

    A label without an object to find is NaN, and is left out of the means.
    """
    table = precision_table(joined([image.matches for image in images]))
    results = {"AP": mean_percent(table), "AP50": mean_percent(table[:, 0])}
    for label, row in zip(THINGS, table, strict=True):
        name = LABELS[label]["name"]
        results |= {f"AP-{name}": mean_percent(row), f"AP50-{name}": mean_percent(row[:1])}
    if coco := [image.coco for image in images if image.coco is not None]:
        results |= _boundary(coco)
    return results


def score_folders(
    gt_dir: PathLike, pred_dir: PathLike, *, boundary: bool = False, workers: int = 1
) -> Metrics:
    """Return the metrics of saved predictions, see `summary` and `score_files`."""

    def score(image_id: str, truth: InstanceMap, file: Path) -> ScoredImage:
        return score_image(image_id, truth, read_objects(file, pred_dir, truth), boundary=boundary)

    return summary(score_files(gt_dir, pred_dir, ".txt", score, workers))


def found_objects(output: Mapping[str, Any], label_ids: Mapping[int, int]) -> FoundObjects:
    """Return the `instances` of a model's output, with the label id of each contiguous class."""
    instances = output["instances"]
    labels = [label_ids[number] for number in instances.pred_classes.tolist()]
    return FoundObjects(run_length_masks(instances.pred_masks), labels, instances.scores.tolist())


class CityscapesInstanceEvaluator(CityscapesEvaluator):
    """Evaluator of a model's `instances` by Cityscapes' AP.

    Masks are compared as they are processed. Only numbers are kept, and run-length codes for `boundary`.

    Args:
        metadata: has `thing_dataset_id_to_contiguous_id`.
        output_dir: folder below which predictions are saved.
        save_predictions: save them in `submission/instance`.
        boundary: also compute boundary AP.
    """

    def __init__(
        self,
        *,
        metadata: Any,
        output_dir: PathLike | None = None,
        save_predictions: bool = False,
        boundary: bool = False,
    ) -> None:
        label_ids = DatasetIds(metadata, "thing_dataset_id_to_contiguous_id")
        super().__init__(
            "segm",
            output_dir if save_predictions else None,
            "instance",
            predict=partial(found_objects, label_ids=label_ids),
            save=write_objects,
            score=partial(score_image, boundary=boundary),
            summarize=summary,
        )


def _annotations(image_id: object, truth: InstanceMap) -> list[JsonObject]:
    """Return the ground-truth objects of an image in COCO's format; groups are crowds."""
    columns = truth.pixels.T.ravel()
    all_runs = runs(columns)
    run_ids = columns[all_runs[:, 0]]
    chosen = np.flatnonzero(np.isin(truth.labels, THINGS))
    height, width = truth.pixels.shape
    masks = RunLengthMasks(
        (height, width), [torch.from_numpy(all_runs[run_ids == id]) for id in truth.ids[chosen]]
    )
    return [
        {
            "image_id": image_id,
            "category_id": int(truth.labels[place]),
            "segmentation": code,
            "area": int(truth.areas[place]),
            "iscrowd": int(not truth.is_object[place]),
        }
        for place, code in zip(chosen, encode_masks(masks), strict=True)
    ]


def _boundary(images: Sequence[dict[str, list[JsonObject]]]) -> dict[str, float]:
    """Return COCO's boundary AP of the objects of the images."""
    truth = {key: [item for image in images for item in image[key]] for key in images[0]}
    truth["categories"] = [{"id": id, "name": LABELS[id]["name"]} for id in THINGS]
    scores = average_precision(truth, truth["results"], boundary_ratio=RATIOS["cityscapes_instance"])
    return {f"boundary_{name}": value for name, value in scores.items()}
