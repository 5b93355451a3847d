"""Parts that Cityscapes' two metrics share: the evaluator, and the scoring of files in two folders."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from mask2former.evaluation.cityscapes.ground_truth import InstanceMap, read_instance_map
from mask2former.evaluation.common.json_files import SUBMISSION, get_value
from mask2former.evaluation.evaluator import Metrics, Results
from mask2former.utils.comm import gather_objects
from mask2former.utils.storage import PathLike, files_below

logger = logging.getLogger(__name__)

Prediction = TypeVar("Prediction")
Score = TypeVar("Score")

TRUTH_ENDING = "_instanceIds.png"


class CityscapesEvaluator:
    """Evaluator that scores one image at a time, against its file of instance ids.

    Args:
        task: name of the task in the results.
        output_dir: predictions are saved below it, in the benchmark's format, and images then need no ground
            truth; None saves none.
        kind: name of the folder of predictions.
        predict: maps the model's output for an image to a prediction.
        save: writes an image's prediction; called with folder, image id and prediction.
        score: scores an image; called with image id, ground truth and prediction.
        summarize: maps the scores of all images to metrics.
    """

    def __init__(
        self,
        task: str,
        output_dir: PathLike | None,
        kind: str,
        *,
        predict: Callable[[Mapping[str, Any]], Prediction],
        save: Callable[[Path, object, Prediction], None],
        score: Callable[[object, InstanceMap, Prediction], Score],
        summarize: Callable[[list[Score]], Metrics],
    ) -> None:
        self._task = task
        self._folder = None if output_dir is None else Path(output_dir) / SUBMISSION / kind
        self._predict, self._save, self._score, self._summarize = predict, save, score, summarize
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._scores: list[Any] = []
        self._unscored = 0

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Score a batch: inputs with `image_id` and `instance_ids_file_name`, outputs of the model.

        Raises:
            ValueError: the ground truth is missing, broken or of another size, or a label is no class.
        """
        for record, output in zip(inputs, outputs, strict=True):
            image_id, prediction = record["image_id"], self._predict(output)
            if self._folder is not None:
                self._save(self._folder, image_id, prediction)
                if "instance_ids_file_name" not in record:
                    self._unscored += 1
                    continue
            truth = read_instance_map(get_value(record, "instance_ids_file_name", f"image {image_id}"))
            self._scores.append(self._score(image_id, truth, prediction))

    def evaluate(self) -> Results:
        """Return the metrics over the images of all processes; nothing except on the main process.

        If no image has a ground truth, there are no metrics.
        """
        shares = gather_objects((self._scores, self._unscored))
        scores = [score for share, _ in shares for score in share]
        unscored = sum(number for _, number in shares)
        if unscored:
            logger.warning(
                "%d of %d images have no ground truth: saved, not scored", unscored, unscored + len(scores)
            )
        if not shares or (unscored and not scores):
            return {}
        return {self._task: self._summarize(scores)}


def score_files(
    gt_dir: PathLike,
    pred_dir: PathLike,
    suffix: str,
    score: Callable[[str, InstanceMap, Path], Score],
    workers: int = 1,
) -> list[Score]:
    """Return `score(image id, ground truth, prediction file)` of each image, computed by `workers` threads.

    `gt_dir` has files `*_instanceIds.png` at any depth, `pred_dir` a file `<image id>*<suffix>` for each.

    Raises:
        ValueError: a file is missing or broken, or there are several of one image; the message names it.
    """
    truths = _truth_files(gt_dir)
    predictions = _prediction_files(pred_dir, truths, suffix)

    def score_one(image_id: str) -> Score:
        return score(image_id, read_instance_map(truths[image_id]), predictions[image_id])

    with ThreadPoolExecutor(workers) as pool:
        return list(tqdm(pool.map(score_one, truths), "Cityscapes", len(truths), disable=None))


def _truth_files(folder: PathLike) -> dict[str, Path]:
    """Return the instance images at any depth below a folder, by image id `<city>_<sequence>_<frame>`."""
    files: dict[str, Path] = {}
    for path in sorted(files_below(folder, {".png"})):
        if not path.name.endswith(TRUTH_ENDING):
            continue
        image_id = path.name.removesuffix(TRUTH_ENDING).rpartition("_")[0]  # without "_gtFine" or "_gtCoarse"
        if image_id in files:
            raise ValueError(f"{path} and {files[image_id]} are of the same image")
        files[image_id] = path
    if not files:
        raise ValueError(f"{folder}: no files *{TRUTH_ENDING}")
    return files


def _prediction_files(folder: PathLike, image_ids: Iterable[str], suffix: str) -> dict[str, Path]:
    files = sorted(path for path in files_below(folder, {suffix}) if path.name.endswith(suffix))
    predictions: dict[str, Path] = {}
    for image_id in image_ids:
        found = [path for path in files if path.name.startswith(image_id)]
        if len(found) != 1:
            problem = f"several files, {found[0]} and {found[1]}" if found else "no file"
            raise ValueError(f"{folder}: {problem} of the name {image_id}*{suffix}")
        predictions[image_id] = found[0]
    return predictions
