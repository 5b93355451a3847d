"""Panoptic quality of files in COCO's panoptic format, or of a model's results as they come.

As a command: `python -m mask2former.evaluation.panoptic.quality --gt-json truth.json --gt-dir truth
--pred-json predictions.json --pred-dir predictions [--boundary [RATIO]] [--recount-areas] [--workers N]
[--json]`.

Shapes: `H, W` the image's sides in pixels, `C` categories.
"""

import argparse
import sys
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mask2former.evaluation.common.boundary import add_boundary_argument, ratio_of
from mask2former.evaluation.common.json_files import (
    SUBMISSION,
    read_json,
    require,
    require_list,
    unique_by,
    write_json,
)
from mask2former.evaluation.common.metadata import DatasetIds, required_attribute
from mask2former.evaluation.common.report import run_command
from mask2former.evaluation.panoptic.counts import (
    PLAIN,
    Categories,
    Rules,
    count_matches,
    quality,
    read_categories,
    read_segments,
)
from mask2former.utils import comm as distributed
from mask2former.utils.label_maps import Array, read_segment_ids, write_segment_ids
from mask2former.utils.record_cache import read_once_per_machine
from mask2former.utils.storage import PathLike, to_path

Annotation = dict[str, Any]
ImageId = int | str


class PanopticTruth:
    """A panoptic JSON file and its folder of PNGs; scores the predictions of one image at a time.

    One process of each machine reads the file, and all of the machine share what stands in it: all processes
    must make theirs together.
    """

    def __init__(self, json_file: PathLike, png_dir: PathLike, rules: Rules = PLAIN) -> None:
        self.json_file, self.png_dir, self._rules = json_file, to_path(png_dir), rules
        annotations, (self.categories, image_ids) = read_once_per_machine(partial(_read_truth, json_file))
        self._annotations = annotations
        self._places = {image_id: place for place, image_id in enumerate(image_ids)}

    @property
    def image_ids(self) -> Collection[ImageId]:
        """The annotated images, in the order of the file."""
        return self._places.keys()

    def annotation(self, image_id: ImageId) -> Annotation:
        """What the JSON file says of the image.

        Raises:
            ValueError: it has no annotation of this image.
        """
        if image_id not in self._places:
            raise ValueError(f"{self.json_file}: no annotation has image_id {image_id!r}")
        annotation: Annotation = self._annotations[self._places[image_id]]
        return annotation

    def png_name(self, image_id: ImageId) -> str:
        """The file name of the image's PNG, relative to the folder.

        Raises:
            ValueError: the JSON file has no annotation of this image.
        """
        return str(require(self.annotation(image_id), "file_name", self.json_file))

    def score(self, image_id: ImageId, pred_map: Array, segments: list[Annotation], pred: PathLike) -> Array:
        """Counts (V, 4, C) of a prediction: its map (H, W) of segment ids and what it says of them.

        Raises:
            ValueError: ground truth or prediction breaks the rules; the message calls the prediction `pred`.
        """
        gt_map = read_segment_ids(self.png_dir / self.png_name(image_id))
        of_truth, of_pred = f"{self.json_file}: image {image_id}", f"{pred}: image {image_id}"
        listed = require_list(self.annotation(image_id), "segments_info", of_truth)
        return count_matches(
            gt_map,
            read_segments(listed, self.categories, of_truth, truth=True),
            pred_map,
            read_segments(segments, self.categories, of_pred, truth=False),
            len(self.categories.names),
            of_pred,
            self._rules,
        )

    def empty_counts(self) -> Array:
        """Counts (V, 4, C) of no image at all."""
        return self._rules.empty_counts(self.categories)

    def check_complete(self, predicted: Sequence[ImageId], where: object) -> None:
        """A ValueError unless each annotated image was predicted, and none twice."""
        if len(set(predicted)) != len(predicted):
            raise ValueError(f"{where}: an image was predicted more than once")
        missing = self._places.keys() - set(predicted)
        if missing:
            example = min(missing, key=str)
            raise ValueError(f"{where}: {len(missing)} images have no prediction, among them {example!r}")


def _read_truth(json_file: PathLike) -> tuple[list[Annotation], tuple[Categories, list[ImageId]]]:
    """The annotations of a panoptic JSON file; its categories, and the image of each annotation."""
    content = read_json(json_file, dict)
    categories = read_categories(require_list(content, "categories", json_file), json_file)
    annotations = unique_by(require_list(content, "annotations", json_file), "image_id", json_file)
    return list(annotations.values()), (categories, list(annotations))


def panoptic_quality(
    gt_json: PathLike,
    gt_dir: PathLike,
    pred_json: PathLike,
    pred_dir: PathLike,
    *,
    rules: Rules = PLAIN,
    workers: int = 1,
) -> OrderedDict[str, float]:
    """The metrics of saved predictions, see `panoptic_counts.quality`; `workers` threads score the images.

    Raises:
        ValueError: a file is missing or broken, or an image has no prediction; the message names it.
    """
    truth = PanopticTruth(gt_json, gt_dir, rules)
    annotations = require_list(read_json(pred_json, dict), "annotations", pred_json)
    predictions = unique_by(annotations, "image_id", pred_json)
    truth.check_complete(list(predictions), pred_json)

    def score(image_id: ImageId) -> Array:
        prediction = predictions[image_id]
        pred_map = read_segment_ids(to_path(pred_dir) / str(require(prediction, "file_name", pred_json)))
        segments = require_list(prediction, "segments_info", f"{pred_json}: image {image_id}")
        return truth.score(image_id, pred_map, segments, pred_json)

    with ThreadPoolExecutor(workers) as pool:
        scored = tqdm(pool.map(score, truth.image_ids), "PQ", len(truth.image_ids), disable=None)
        return quality(sum(scored, truth.empty_counts()), truth.categories)


class COCOPanopticEvaluator:
    """PQ of a model's `panoptic_seg`; writes `panoptic/predictions.json` and `panoptic/predictions/*.png`.

    Counts are taken when an image comes, so that neither maps nor files are kept or read again.

    Args:
        metadata: has `panoptic_json`, `panoptic_root`, and the maps of dataset ids to contiguous ones.
        output_dir: where the predictions are written in the official format; None writes none.
        save_predictions: write `submission/panoptic.json` and `submission/panoptic/*.png` too.
        boundary: Boundary PQ besides.
        recount_areas: the areas of true segments are those that their PNGs show, not those of the JSON.
    """

    def __init__(
        self,
        *,
        metadata: Any,
        output_dir: PathLike | None = None,
        save_predictions: bool = False,
        boundary: bool = False,
        recount_areas: bool = False,
    ) -> None:
        self._truth = PanopticTruth(
            required_attribute(metadata, "panoptic_json"),
            required_attribute(metadata, "panoptic_root"),
            Rules(recount_areas, ratio_of(metadata) if boundary else None),
        )
        self._thing_ids = DatasetIds(metadata, "thing_dataset_id_to_contiguous_id")
        self._stuff_ids = DatasetIds(metadata, "stuff_dataset_id_to_contiguous_id")
        # Places without a suffix: the JSON file's, and that of the folder of PNGs
        self._targets = [] if output_dir is None else [Path(output_dir) / "panoptic/predictions"]
        if output_dir is not None and save_predictions:
            self._targets.append(Path(output_dir) / SUBMISSION / "panoptic")
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._counts = self._truth.empty_counts()
        self._annotations: list[Annotation] = []

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Score a batch: inputs with `image_id`, outputs with `panoptic_seg`: map (H, W) of ids, segments."""
        for record, output in zip(inputs, outputs, strict=True):
            segment_map, segments = output["panoptic_seg"]
            pred_map = segment_map.cpu().numpy()
            annotation = self._annotation(record["image_id"], segments)
            self._counts += self._truth.score(
                record["image_id"], pred_map, annotation["segments_info"], "model's result"
            )
            self._annotations.append(annotation)
            for target in self._targets:
                target.mkdir(parents=True, exist_ok=True)
                write_segment_ids(target / annotation["file_name"], pred_map)

    def evaluate(self) -> OrderedDict[str, OrderedDict[str, float]]:
        """`{"panoptic_seg": {"PQ": …}}` over the images of all processes; empty but on the main process.

        Raises:
            ValueError: an annotated image has not been processed.
        """
        gathered = distributed.gather_objects((self._counts, self._annotations))
        if not distributed.is_main_process():
            return OrderedDict()
        annotations = [annotation for _, share in gathered for annotation in share]
        for target in self._targets:
            write_json(target.with_suffix(".json"), {"annotations": annotations})
        self._truth.check_complete([a["image_id"] for a in annotations], self._truth.json_file)
        counts = sum((share for share, _ in gathered), self._truth.empty_counts())
        return OrderedDict(panoptic_seg=quality(counts, self._truth.categories))

    def _annotation(self, image_id: ImageId, segments: Sequence[Mapping[str, Any]]) -> Annotation:
        """The prediction as the official JSON has it, with the data set's category ids."""
        infos = [
            {
                "id": int(segment["id"]),
                "category_id": (self._thing_ids if segment["isthing"] else self._stuff_ids)[
                    int(segment["category_id"])
                ],
            }
            for segment in segments
        ]
        # One flat folder: folders in the name become a part of it, and no absolute name leads out of it.
        name = self._truth.png_name(image_id).strip("/").replace("/", "_")
        return {"image_id": image_id, "file_name": f"{Path(name).stem}.png", "segments_info": infos}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="panoptic_quality", description="Panoptic quality of saved predictions."
    )
    parser.add_argument("--gt-json", required=True, help="the truth's panoptic JSON file")
    parser.add_argument("--gt-dir", required=True, help="the folder of its PNGs")
    parser.add_argument("--pred-json", required=True, help="the predictions' JSON file")
    parser.add_argument("--pred-dir", required=True, help="the folder of their PNGs")
    add_boundary_argument(parser)
    parser.add_argument(
        "--recount-areas",
        action="store_true",
        help="areas of the ground truth from its PNGs, not its JSON file",
    )
    parser.add_argument("--workers", type=int, default=1, help="threads that score images")
    return run_command(
        parser,
        lambda args: panoptic_quality(
            args.gt_json,
            args.gt_dir,
            args.pred_json,
            args.pred_dir,
            rules=Rules(args.recount_areas, args.boundary),
            workers=args.workers,
        ),
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
