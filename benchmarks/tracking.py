"""Tracks of an image model on drawn films: accuracy, changes of ids, and what tracking costs.

    python benchmarks/tracking.py model_final.pth [--films 20]

The films are those of `datasets/prepare_films.py`: shapes cross, hide one another, leave and return. The
model is that of `make run`, which was trained on images alone. AP of images takes each frame for a film of
its own, so that both APs are computed by the same code. An id changes where an object of the ground truth is
found (IoU of 0.5 or more) with another id than when it was found before.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from measure import alternate, machine, ratio, table
from pycocotools import mask as rle

from mask2former.config import with_values
from mask2former.data.datasets.films import write_films
from mask2former.engine.setup.trained_model import stored_config
from mask2former.evaluation.common.json_files import load_json
from mask2former.evaluation.video.ap import track_average_precision
from mask2former.modeling.predictions import ImagePrediction
from mask2former.options import MAX_ABSENT
from mask2former.predictor import Predictor
from mask2former.result import Result
from mask2former.tracking.formats import TracksFile
from mask2former.tracking.results import track_result
from mask2former.tracking.tracker import Tracker
from mask2former.utils.image_io import read_image
from mask2former.weights.load import read_checkpoint

TRACKER = "mask2former.tracking.tracker."
WAYS: dict[str, dict[str, Any]] = {  # constants of the tracker that differ
    "tracks": {},
    "tracks, by embeddings alone": {"IOU_WEIGHT": 0.0},
    "tracks, neighbors by masks alone": {"IOU_WEIGHT": 1.0},
    "tracks, the last embedding, not an average": {"FRESHNESS": 1.0},
    "tracks, from frame to frame": {"max_absent": 0},
}
FOUND = 0.5  # IoU


class Frame(NamedTuple):
    """What the network found in a frame."""

    result: Result
    prediction: ImagePrediction


def open_predictor(checkpoint: str) -> Predictor:
    """Return a predictor of instances alone."""
    cfg = stored_config(read_checkpoint(checkpoint))
    test = "MODEL.MASK_FORMER.TEST"
    tasks = {f"{test}.PANOPTIC_ON": False, f"{test}.SEMANTIC_ON": False, f"{test}.INSTANCE_ON": True}
    return Predictor(with_values(cfg, {**tasks, "MODEL.DEVICE": "cpu"}, "the benchmark"))


def predict(predictor: Predictor, files: Sequence[Path]) -> list[Frame]:
    """Return what the network finds in each frame of a film."""
    frames = []
    for file in files:
        image = read_image(file)
        (prediction,) = predictor.model.predict_images([predictor.mapper.inputs(image)])
        output = predictor.model.post_process(prediction, compact=True)
        frames.append(Frame(predictor.result(image, output), prediction))
    return frames


def track(frames: Sequence[Frame], way: dict[str, Any], classes: Sequence[int]) -> list[Result]:
    """Return the results of a film with tracks."""
    constants = {name: value for name, value in way.items() if name.isupper()}
    tracker = Tracker(way.get("max_absent", MAX_ABSENT))
    with ExitStack() as stack:
        for name, value in constants.items():
            stack.enter_context(mock.patch(TRACKER + name, value))
        return [track_result(tracker, frame.result, frame.prediction, [], classes) for frame in frames]


def track_rows(films: Sequence[Sequence[Result]]) -> list[dict[str, Any]]:
    """Return YouTube-VIS' results of films."""
    tracks = TracksFile(Path("unused"), "instance")
    for results in films:
        tracks.begin()
        for result in results:
            tracks.add(result)
    return tracks.rows()


def image_ap(truth: dict[str, Any], films: Sequence[Sequence[Result]]) -> float:
    """Return the AP of instances, by films of one frame each."""
    videos, annotations, rows = [], [], []
    for video, results in zip(truth["videos"], films, strict=True):
        own = [track for track in truth["annotations"] if track["video_id"] == video["id"]]
        for number, result in enumerate(results):
            key = len(videos) + 1
            videos.append({**video, "id": key, "length": 1, "file_names": [video["file_names"][number]]})
            for track in own:
                one = {name: [track[name][number]] for name in ("segmentations", "bboxes", "areas")}
                if track["segmentations"][number]:
                    annotations.append(
                        {**track, **one, "id": len(annotations) + 1, "video_id": key, "length": 1}
                    )
            rows += [{**row, "video_id": key} for row in track_rows([[result]])]
    content = {**truth, "videos": videos, "annotations": annotations}
    return track_average_precision(content, rows)["AP"]


def id_changes(truth: dict[str, Any], films: Sequence[Sequence[Result]]) -> tuple[int, int]:
    """Return how often ids change, and how often an object is found again after it was found before."""
    changes = again = 0
    for video, results in zip(truth["videos"], films, strict=True):
        own = [track for track in truth["annotations"] if track["video_id"] == video["id"]]
        rows = track_rows([results])
        for track in own:
            ids = [_id_in(frame, code, rows) for frame, code in enumerate(track["segmentations"]) if code]
            found = [number for number in ids if number is not None]
            changes += sum(before != after for before, after in pairwise(found))
            again += max(0, len(found) - 1)
    return changes, again


def _id_in(frame: int, code: Any, rows: list[dict[str, Any]]) -> int | None:
    """Return the position of the row that has an object's mask in a frame, or None."""
    there = [i for i, row in enumerate(rows) if row["segmentations"][frame]]
    if not there:
        return None
    ious = rle.iou([rows[i]["segmentations"][frame] for i in there], [code], [0])[:, 0]
    return there[int(ious.argmax())] if ious.max() >= FOUND else None


def accuracy(predictor: Predictor, root: Path, truth: dict[str, Any]) -> str:
    """Return the table of accuracy."""
    classes = predictor.model.inference.thing_ids
    paths = [[root / "valid/JPEGImages" / name for name in video["file_names"]] for video in truth["videos"]]
    films = [predict(predictor, files) for files in paths]
    singles = [[result for frame in frames for result in track([frame], {}, classes)] for frames in films]
    rows = [["", "AP", "AP50", "changes of ids"]]
    rows.append(["frames one by one, AP of images", f"{image_ap(truth, singles):.1f}", "", ""])
    for name, way in WAYS.items():
        results = [track(frames, way, classes) for frames in films]
        metrics = track_average_precision(truth, track_rows(results))
        changes, again = id_changes(truth, results)
        rows.append([name, f"{metrics['AP']:.1f}", f"{metrics['AP50']:.1f}", f"{changes} of {again}"])
    return table(rows)


def speed(predictor: Predictor, root: Path, truth: dict[str, Any], runs: int) -> str:
    """Return what a frame costs, of a film that is in memory; both sides take turns frame by frame."""
    images = [read_image(root / "valid/JPEGImages" / name) for name in truth["videos"][0]["file_names"]]
    tracked = predictor.track(image for _ in range(runs + 1) for image in images)
    sources = cycle(images)
    sides = {"alone": lambda: predictor(next(sources)), "tracked": lambda: next(tracked)}
    seconds = alternate(sides, runs * len(images), warmup=len(images))
    each = {name: f"{1000 * value:.1f} ms" for name, value in seconds.items()}
    times = ratio(seconds["tracked"], seconds["alone"])
    return f"A frame takes {each['alone']} alone, and {each['tracked']} with tracks ({times})."


def report(checkpoint: str, films: int, runs: int) -> str:
    """Return tables of accuracy and speed."""
    predictor = open_predictor(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        root = write_films(Path(folder), {"valid": films})
        truth = load_json(root / "valid.json", dict)
        tables = accuracy(predictor, root, truth), speed(predictor, root, truth, runs)
    return "\n\n".join([machine(), *tables])


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", help="the model of `make run`, by its path")
    parser.add_argument("--films", type=int, default=20, help="number of films")
    parser.add_argument("--runs", type=int, default=5, help="timings of each side")
    args = parser.parse_args()
    sys.stdout.write(report(args.checkpoint, args.films, args.runs) + "\n")


if __name__ == "__main__":
    main()
