"""Average precision and recall of tracks by the rules of YouTube-VIS (Yang et al., ICCV 2019).

The rules are COCO's with tracks for masks. IoU is the shared pixels of all frames over the united pixels of
all frames. Sizes go by the mean area over the frames in which a track is visible. At most 100 results per
video and category count.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pycocotools import mask as rle
from torch import Tensor

from mask2former.evaluation.coco.ap import mean_percent, metrics_of
from mask2former.evaluation.coco.precisions import id_order
from mask2former.evaluation.common.json_files import SUBMISSION, JsonObject, load_json, write_json
from mask2former.evaluation.common.metadata import DatasetIds, required_attribute
from mask2former.evaluation.common.rle import encode_masks
from mask2former.evaluation.evaluator import Metrics, Results
from mask2former.evaluation.video.ground_truth import VideoGroundTruth, checked_ground_truth, checked_results
from mask2former.evaluation.video.precisions import MAX_RESULTS, precisions_and_recalls
from mask2former.structures import RunLengthMasks
from mask2former.utils.comm import gather_objects, is_main_process
from mask2former.utils.storage import PathLike

logger = logging.getLogger(__name__)

RESULTS_FILE = "results.json"
RECALLS = {"AR1": MAX_RESULTS.index(1), "AR10": MAX_RESULTS.index(10)}  # name -> index in M


def track_average_precision(
    truth: Mapping[str, Any],
    results: Sequence[JsonObject],
    *,
    gt_file: object = "ground truth",
    results_file: object = "results",
) -> Metrics:
    """Return AP, AP50, AP75, APs, APm, APl, AR1, AR10 in percent, and `AP-name` of each category.

    A mean over nothing (no track of this size or category in the ground truth) is NaN.

    Args:
        truth: the content of YouTube-VIS' JSON.
        results: items with `video_id`, `category_id`, `score`, and `segmentations`: for each frame null or a
            compressed RLE.
        gt_file, results_file: names of ground truth and results in messages.

    Raises:
        ValueError: a key is missing, a video or category unknown, or a mask of another size than its video.
    """
    checked = checked_ground_truth(truth, gt_file)
    precisions, recalls = precisions_and_recalls(checked, checked_results(results, checked, results_file))
    metrics = metrics_of(precisions, _categories(checked))
    recall = {name: mean_percent(recalls[:, :, 0, limit]) for name, limit in RECALLS.items()}
    overall = {name: value for name, value in metrics.items() if "-" not in name}
    return {**overall, **recall, **metrics}


def _categories(truth: VideoGroundTruth) -> list[JsonObject]:
    return [truth.categories[id] for id in sorted(truth.categories, key=id_order)]


def has_annotations(truth: Mapping[str, Any]) -> bool:
    """Return False for the JSON of a set whose ground truth is kept on a server."""
    return truth.get("annotations") is not None


class YTVISEvaluator:
    """Evaluator of the tracks that a video model finds; writes YouTube-VIS' `results.json`.

    Args:
        metadata: has `json_file` (YouTube-VIS' JSON) and `thing_dataset_id_to_contiguous_id`.
        output_dir: folder of the results file; None writes no files.
        save_predictions: also write the results below `submission/`.
    """

    def __init__(
        self, *, metadata: Any, output_dir: PathLike | None = None, save_predictions: bool = False
    ) -> None:
        self._gt_file = required_attribute(metadata, "json_file")
        # Errors are reported before the model runs; the file is read again by each evaluation
        if is_main_process():
            truth = load_json(self._gt_file, dict)
            if has_annotations(truth):
                checked_ground_truth(truth, self._gt_file)
        self._category_ids = DatasetIds(metadata, "thing_dataset_id_to_contiguous_id")
        self._files = [] if output_dir is None else [Path(output_dir) / RESULTS_FILE]
        if output_dir is not None and save_predictions:
            self._files.append(Path(output_dir) / SUBMISSION / RESULTS_FILE)
        self.reset()

    def reset(self) -> None:
        """Forget all videos."""
        self._results: list[JsonObject] = []

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Add a batch: inputs with `video_id`, outputs with `pred_scores`, `pred_labels`, `pred_masks`.

        The masks of a track are (T, H, W), one for each frame of the video.
        """
        for clip, output in zip(inputs, outputs, strict=True):
            tracks = zip(output["pred_scores"], output["pred_labels"], output["pred_masks"], strict=True)
            self._results += [
                {
                    "video_id": clip["video_id"],
                    "score": float(score),
                    "category_id": self._category_ids[int(label)],
                    "segmentations": encode_track(masks),
                }
                for score, label, masks in tracks
            ]

    def evaluate(self) -> Results:
        """Return `{"segm": {"AP": …}}` over the videos of all processes; nothing except on the main process.

        If the ground truth has no annotations (the server has them), write the results only.
        """
        shares = gather_objects(self._results)
        if not shares:
            return {}
        results = [result for share in shares for result in share]
        for file in self._files:
            write_json(file, results)
        truth = load_json(self._gt_file, dict)
        if not has_annotations(truth):
            logger.info("%s has no annotations: the results are saved, not scored", self._gt_file)
            return {}
        names = {"gt_file": self._gt_file, "results_file": "model's result"}
        return {"segm": track_average_precision(truth, results, **names)}


def encode_track(masks: Tensor | RunLengthMasks) -> list[JsonObject | None]:
    """Return the masks (T, H, W) of a track as compressed RLEs, None where they are empty."""
    codes = encode_masks(masks)
    return [code if pixels else None for code, pixels in zip(codes, rle.area(codes), strict=True)]
