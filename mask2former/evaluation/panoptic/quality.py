"""Panoptic quality of files in COCO's panoptic format, or of a model's outputs as they are made.

Shapes: `H, W` the image's sides in pixels, `C` categories, `V` versions of the metric, see `counts`.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mask2former.evaluation.common.boundary import ratio_of
from mask2former.evaluation.common.json_files import (
    SUBMISSION,
    JsonObject,
    get_value,
    index_by,
    load_json,
    write_json,
)
from mask2former.evaluation.common.metadata import DatasetIds, required_attribute
from mask2former.evaluation.evaluator import Metrics, Results
from mask2former.evaluation.panoptic.counts import (
    PLAIN,
    Categories,
    Rules,
    count_matches,
    listed_segments,
    quality,
    read_categories,
    read_segments,
)
from mask2former.utils.coco_values import require_areas
from mask2former.utils.comm import gather_objects
from mask2former.utils.label_maps import Array, read_segment_ids, upright, write_segment_ids
from mask2former.utils.messages import InputError
from mask2former.utils.record_cache import read_once_per_machine
from mask2former.utils.storage import PathLike, alike, to_path

ImageId = int | str


class PanopticGroundTruth:
    """Panoptic JSON file and its folder of PNGs, which scores the predictions of one image at a time.

    One process of each machine reads the JSON file, and shares it with the others of the machine: all
    processes must construct this object at the same time.
    """

    def __init__(self, json_file: PathLike, png_dir: PathLike, rules: Rules = PLAIN) -> None:
        self.json_file, self.png_dir, self._rules = json_file, to_path(png_dir), rules
        read = partial(_read_truth, json_file, self.png_dir, rules)
        annotations, (self.categories, image_ids) = read_once_per_machine(read)
        self._annotations = annotations
        self._places = {image_id: place for place, image_id in enumerate(image_ids)}
        self.image_ids = self._places.keys()  # in the order of the file

    def annotation(self, image_id: ImageId) -> JsonObject:
        """Return the image's annotation; raise ValueError if there is none."""
        if image_id not in self._places:
            raise InputError(f"{self.json_file}: no annotation has image_id {image_id!r}")
        annotation: JsonObject = self._annotations[self._places[image_id]]
        return annotation

    def png_name(self, image_id: ImageId) -> str:
        """Return the name of the image's PNG, relative to the folder."""
        return str(self.annotation(image_id)["file_name"])

    def score(
        self,
        image_id: ImageId,
        pred_map: Array,
        segments: list[JsonObject],
        pred: PathLike,
        record: Mapping[str, Any] | None = None,
    ) -> Array:
        """Return the counts (V, 4, C) of a prediction: its map (H, W) of segment ids, and `segments_info`.

        The image's record, if given, has the letter case of its PNG's path, and whether it is to be turned.

        Raises:
            ValueError: ground truth or prediction is invalid; the message calls the prediction `pred`.
        """
        record, png = record or {}, str(self.png_dir / self.png_name(image_id))
        on_disk = str(record.get("pan_seg_file_name"))
        gt_map = upright(read_segment_ids(on_disk if alike(on_disk) == alike(png) else png), record)
        gt_name, pred_name = f"{self.json_file}: image {image_id}", f"{pred}: image {image_id}"
        return count_matches(
            gt_map,
            read_segments(self.annotation(image_id), self.categories, gt_name),
            pred_map,
            read_segments({"segments_info": segments}, self.categories, pred_name),
            len(self.categories.names),
            pred_name,
            self._rules,
        )

    def empty_counts(self) -> Array:
        """Return the counts (V, 4, C) of no image."""
        versions = 1 if self._rules.boundary_ratio is None else 2
        return np.zeros((versions, 4, len(self.categories.names)))

    def check_complete(self, predicted: Sequence[ImageId], where: object) -> None:
        """Raise ValueError unless each annotated image was predicted, and none twice."""
        if len(set(predicted)) != len(predicted):
            raise InputError(f"{where}: an image was predicted more than once")
        missing = self.image_ids - set(predicted)
        if missing:
            example = min(missing, key=str)
            raise InputError(f"{where}: {len(missing)} images have no prediction, among them {example!r}")


def _read_truth(
    json_file: PathLike, png_dir: Path, rules: Rules
) -> tuple[list[JsonObject], tuple[Categories, list[ImageId]]]:
    """Return the annotations of a panoptic JSON file, its categories, and the image of each annotation.

    Errors are found here, before a model is trained. Of an annotation, what the metric needs is kept.
    """
    content = load_json(json_file, dict)
    for key in ("categories", "annotations"):
        get_value(content, key, json_file, list)
    categories = read_categories(content, json_file)
    annotations = []
    by_image = index_by(content["annotations"], "image_id", json_file)
    for image_id, annotation in by_image.items():
        where = f"{json_file}: image {image_id}"
        png = get_value(annotation, "file_name", where, str)
        segments = listed_segments(annotation, categories, where)
        if not rules.recount_areas:
            _check_areas(segments, png_dir / png, where)
        annotations.append({"file_name": png, "segments_info": segments})
    return annotations, (categories, list(by_image))


def _check_areas(segments: list[JsonObject], png: Path, where: str) -> None:
    try:
        require_areas(segments, lambda: set(np.unique(read_segment_ids(png)).tolist()))
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error


def panoptic_quality(
    gt_json: PathLike,
    gt_dir: PathLike,
    pred_json: PathLike,
    pred_dir: PathLike,
    *,
    rules: Rules = PLAIN,
    workers: int = 1,
) -> Metrics:
    """Return the metrics of saved predictions, see `counts.quality`; `workers` threads score the images.

    Raises:
        ValueError: a file is missing or broken, or an image has no prediction; the message names it.
    """
    truth = PanopticGroundTruth(gt_json, gt_dir, rules)
    annotations = get_value(load_json(pred_json, dict), "annotations", pred_json, list)
    predictions = index_by(annotations, "image_id", pred_json)
    truth.check_complete(list(predictions), pred_json)

    def score(image_id: ImageId) -> Array:
        prediction = predictions[image_id]
        pred_map = read_segment_ids(to_path(pred_dir) / str(get_value(prediction, "file_name", pred_json)))
        segments = get_value(prediction, "segments_info", f"{pred_json}: image {image_id}", list)
        return truth.score(image_id, pred_map, segments, pred_json)

    with ThreadPoolExecutor(workers) as pool:
        scored = tqdm(pool.map(score, truth.image_ids), "PQ", len(truth.image_ids), disable=None)
        return quality(sum(scored, truth.empty_counts()), truth.categories)


class COCOPanopticEvaluator:
    """Evaluator of a model's `panoptic_seg` by PQ.

    Images are scored as they are processed. Predictions are written as `panoptic/predictions.json` and
    `panoptic/predictions/*.png`.

    Args:
        metadata: has `panoptic_json`, `panoptic_root`, and the maps of dataset ids to contiguous ones.
        output_dir: folder of the predictions in COCO's panoptic format; None writes no files.
        save_predictions: also write `submission/panoptic.json` and `submission/panoptic/*.png`.
        boundary: also compute boundary PQ.
        recount_areas: count the areas of ground-truth segments in their PNGs instead of reading them from the
            JSON file.
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
        self._truth = PanopticGroundTruth(
            required_attribute(metadata, "panoptic_json"),
            required_attribute(metadata, "panoptic_root"),
            Rules(recount_areas, ratio_of(metadata) if boundary else None),
        )
        self._thing_ids = DatasetIds(metadata, "thing_dataset_id_to_contiguous_id")
        self._stuff_ids = DatasetIds(metadata, "stuff_dataset_id_to_contiguous_id")
        # Folders of PNGs; the JSON file beside each has the same name and a suffix
        self._folders = [] if output_dir is None else [Path(output_dir) / "panoptic/predictions"]
        if output_dir is not None and save_predictions:
            self._folders.append(Path(output_dir) / SUBMISSION / "panoptic")
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._counts = self._truth.empty_counts()
        self._annotations: list[JsonObject] = []

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Score a batch: inputs with `image_id`, outputs with `panoptic_seg`: map (H, W) of ids, segments."""
        for record, output in zip(inputs, outputs, strict=True):
            segment_map, segments = output["panoptic_seg"]
            image_id, pred_map = record["image_id"], segment_map.cpu().numpy()
            infos = []
            for segment in segments:
                ids = self._thing_ids if segment["isthing"] else self._stuff_ids
                infos.append({"id": int(segment["id"]), "category_id": ids[int(segment["category_id"])]})
            # In one flat folder: names of folders become part of the file's name, and no name leads out of it
            name = self._truth.png_name(image_id).strip("/").replace("/", "_")
            png = f"{Path(name).stem}.png"
            self._counts += self._truth.score(image_id, pred_map, infos, "model's result", record)
            self._annotations.append({"image_id": image_id, "file_name": png, "segments_info": infos})
            for folder in self._folders:
                folder.mkdir(parents=True, exist_ok=True)
                write_segment_ids(folder / png, pred_map)

    def evaluate(self) -> Results:
        """Return `{"panoptic_seg": {"PQ": …}}` over all processes; nothing except on the main process.

        Raises:
            ValueError: an annotated image has not been processed.
        """
        shares = gather_objects((self._counts, self._annotations))
        if not shares:
            return {}
        annotations = [annotation for _, share in shares for annotation in share]
        for folder in self._folders:
            write_json(folder.with_suffix(".json"), {"annotations": annotations})
        self._truth.check_complete([a["image_id"] for a in annotations], self._truth.json_file)
        counts = sum((share for share, _ in shares), self._truth.empty_counts())
        return {"panoptic_seg": quality(counts, self._truth.categories)}
