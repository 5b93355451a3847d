"""Cityscapes' average precision of instance masks, and with it COCO's boundary AP of the same.

As a command: `python -m mask2former.evaluation.cityscapes.ap --gt-dir gtFine/val --pred-dir predictions
[--boundary] [--workers N] [--json]`. The ground truth is `*_instanceIds.png` at any depth below its folder;
predictions are in the benchmark's format, see `cityscapes_submission`.

Shapes: `H, W` the image's sides in pixels, `P` predictions, `C` labels, `T` IoU thresholds.
"""

import argparse
import sys
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from mask2former.evaluation.cityscapes.ground_truth import (
    InstanceMap,
    Labels,
    labels_of,
    object_labels,
    prediction_files,
    published_labels,
    read_instance_map,
    tell_unscored,
    truth_files,
    truth_of,
)
from mask2former.evaluation.cityscapes.matching import Matches, joined, match, precision_table
from mask2former.evaluation.cityscapes.submission import (
    FoundObjects,
    read_objects,
    run_length_masks,
    submission_folder,
    write_objects,
)
from mask2former.evaluation.coco import ap as coco_ap
from mask2former.evaluation.common.boundary import RATIOS
from mask2former.evaluation.common.metadata import DatasetIds
from mask2former.evaluation.common.report import run_command
from mask2former.evaluation.common.rle import encode_masks
from mask2former.structures import RunLengthMasks
from mask2former.utils import comm as distributed
from mask2former.utils.label_maps import Array
from mask2former.utils.storage import PathLike

Record = dict[str, Any]

AP50 = 0  # place among the thresholds


@dataclass(frozen=True)
class ScoredImage:
    """What is kept of an image: its matches, and for boundary AP its ground truth and results as COCO has
    them.
    """

    matches: Matches
    image: Record = field(default_factory=dict)
    annotations: list[Record] = field(default_factory=list)
    results: list[Record] = field(default_factory=list)


def score_image(
    image_id: object, truth: InstanceMap, found: FoundObjects, labels: Labels, *, boundary: bool
) -> ScoredImage:
    """Compare what was found in an image with its truth.

    Raises:
        ValueError: the masks have another size than the truth.
    """
    matches = match(truth, *found, labels)
    if not boundary:
        return ScoredImage(matches)
    evaluated = {label.id for label in object_labels(labels)}
    height, width = truth.pixels.shape
    results = [
        {"image_id": image_id, "category_id": label_id, "segmentation": code, "score": score}
        for code, label_id, score in zip(encode_masks(found.masks), *found[1:], strict=True)
        if label_id in evaluated
    ]
    image = {"id": image_id, "height": height, "width": width}
    return ScoredImage(matches, image, _annotations(image_id, truth, evaluated), results)


def summary(images: Sequence[ScoredImage], labels: Labels) -> OrderedDict[str, float]:
    """AP and AP50 in percent, of all labels and of each.

    Where images were scored for it, `boundary_AP` and so on are `coco_ap.average_precision` by boundaries.
    A label without an object to be found is left out of the means and is NaN itself.
    """
    evaluated = object_labels(labels)
    matches = joined([image.matches for image in images])
    table = precision_table(matches, [label.id for label in evaluated])
    results = OrderedDict(AP=_mean(table), AP50=_mean(table[:, AP50]))
    for label, row in zip(evaluated, table, strict=True):
        results |= {f"AP-{label.name}": _mean(row), f"AP50-{label.name}": _mean(row[[AP50]])}
    if any(image.image for image in images):
        results |= _boundary(images, labels)
    return results


def score_folders(
    gt_dir: PathLike, pred_dir: PathLike, *, boundary: bool = False, workers: int = 1
) -> OrderedDict[str, float]:
    """The metrics of saved predictions, see `summary`; `workers` threads score the images.

    Raises:
        ValueError: a file is missing or broken, or is one of several; the message names it.
    """
    labels = published_labels()
    truths = truth_files(gt_dir)
    predictions = prediction_files(pred_dir, truths, ".txt")

    def score(image_id: str) -> ScoredImage:
        truth = read_instance_map(truths[image_id], labels)
        found = read_objects(predictions[image_id], pred_dir, truth, labels)
        return score_image(image_id, truth, found, labels, boundary=boundary)

    with ThreadPoolExecutor(workers) as pool:
        return summary(list(tqdm(pool.map(score, truths), "AP", len(truths), disable=None)), labels)


class CityscapesInstanceEvaluator:
    """Cityscapes' AP of a model's `instances`.

    Masks are compared when an image comes. Only numbers are kept, and run-length codes if `boundary` is on.

    Args:
        metadata: has `labels` (the table of Cityscapes' labels) and `thing_dataset_id_to_contiguous_id`.
        output_dir: predictions are saved below it, in `submission/instance`.
        save_predictions: whether they are, in the benchmark's format.
        boundary: whether to measure boundary AP too.
    """

    def __init__(
        self,
        *,
        metadata: Any,
        output_dir: PathLike | None = None,
        save_predictions: bool = False,
        boundary: bool = False,
    ) -> None:
        self._labels = labels_of(metadata)
        self._label_ids = DatasetIds(metadata, "thing_dataset_id_to_contiguous_id")
        self._folder = submission_folder(output_dir, "instance") if save_predictions else None
        self._boundary = boundary
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._images: list[ScoredImage] = []
        self._unscored = 0

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Score a batch: outputs with `instances`, inputs with `image_id` and `instance_ids_file_name`.

        Raises:
            ValueError: the ground truth is missing, broken or of another size; where predictions are saved, a
                image may have no `instance_ids_file_name`, and is not scored.
        """
        for record, output in zip(inputs, outputs, strict=True):
            instances, image_id = output["instances"], record["image_id"]
            found = FoundObjects(
                run_length_masks(instances.pred_masks),
                [self._label_ids[number] for number in instances.pred_classes.tolist()],
                instances.scores.tolist(),
            )
            if self._folder is not None:
                write_objects(self._folder, image_id, found)
            truth = truth_of(record, self._labels, needed=self._folder is None)
            if truth is None:
                self._unscored += 1
                continue
            self._images.append(score_image(image_id, truth, found, self._labels, boundary=self._boundary))

    def evaluate(self) -> OrderedDict[str, OrderedDict[str, float]]:
        """`{"segm": {"AP": …}}` over the images of all processes; empty but on the main process.

        It is empty, too, if no image has a truth.
        """
        gathered = distributed.gather_objects((self._images, self._unscored))
        if not distributed.is_main_process():
            return OrderedDict()
        images = [image for share, _ in gathered for image in share]
        unscored = sum(number for _, number in gathered)
        tell_unscored(len(images), unscored)
        if unscored and not images:
            return OrderedDict()
        return OrderedDict(segm=summary(images, self._labels))


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="cityscapes_ap", description="Cityscapes' average precision of saved instance masks."
    )
    parser.add_argument("--gt-dir", required=True, help="the folder of the truth's *_instanceIds.png files")
    parser.add_argument(
        "--pred-dir", required=True, help="the folder of the predictions' .txt files and masks"
    )
    parser.add_argument("--boundary", action="store_true", help="measure boundary AP too")
    parser.add_argument("--workers", type=int, default=1, help="threads that score images")
    return run_command(
        parser,
        lambda args: score_folders(args.gt_dir, args.pred_dir, boundary=args.boundary, workers=args.workers),
        argv,
    )


def _annotations(image_id: object, truth: InstanceMap, evaluated: Iterable[int]) -> list[Record]:
    """The true objects of an image as COCO has them; groups are crowds."""
    columns = truth.pixels.T.ravel()
    starts = np.append(0, np.flatnonzero(columns[1:] != columns[:-1]) + 1)
    runs, run_ids = np.stack([starts, np.append(starts[1:], columns.size)], 1), columns[starts]
    chosen = np.flatnonzero(np.isin(truth.labels, list(evaluated)))
    height, width = truth.pixels.shape
    masks = RunLengthMasks(
        (height, width), [torch.from_numpy(runs[run_ids == id]) for id in truth.ids[chosen]]
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


def _boundary(images: Sequence[ScoredImage], labels: Labels) -> dict[str, float]:
    """COCO's boundary AP."""
    truth = {
        "images": [image.image for image in images],
        "annotations": [annotation for image in images for annotation in image.annotations],
        "categories": [{"id": label.id, "name": label.name} for label in object_labels(labels)],
    }
    results = [result for image in images for result in image.results]
    scores = coco_ap.average_precision(truth, results, boundary_ratio=RATIOS["cityscapes_instance"])
    return {f"boundary_{name}": value for name, value in scores.items()}


def _mean(precisions: Array) -> float:
    """Mean in percent of the entries that are not NaN; NaN if all are."""
    valid = precisions[np.isfinite(precisions)]
    return float(100 * valid.mean()) if valid.size else float("nan")


if __name__ == "__main__":
    sys.exit(main())
