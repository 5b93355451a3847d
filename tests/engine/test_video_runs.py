"""Runs on videos in YouTube-VIS' layout: training on clips, also resumed and in two processes; evaluation."""

import json
import math
import re
import shutil

import numpy as np
import pytest
from dataset_cases import TINY
from process_runs import assert_close, assert_same_weights, curve
from score_command import score
from synthetic_datasets import coco, youtube_vis

from mask2former.engine.checkpoint.run_folder import POINTER
from mask2former.engine.metrics_log import read_metrics
from mask2former.tools.train import main

R50 = "youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml"
TRAIN = ("ytvis_2019_train",)  # the only set with tracks
OVIS = {"DATASETS__TRAIN": ("ovis_train",), "DATASETS__TEST": ("ovis_train",), "INPUT__MIN_SIZE_TRAIN": (48,)}
STEPS = {"SOLVER.MAX_ITER": 4, "SOLVER.CHECKPOINT_PERIOD": 2, "MODEL.RESNETS.NORM": "FrozenBN"}


def arguments(**changes):
    """Return `KEY VALUE ...` of a tiny run; in a change's name __ stands for the dot."""
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return [str(item) for pair in {**TINY, **STEPS, **named}.items() for item in pair]


def run(folder, *flags, config=R50, **changes):
    options = {"DATASETS__TEST": TRAIN, **changes}
    assert main(["--config-file", config, *flags, *arguments(OUTPUT_DIR=folder, **options)]) == 0


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    youtube_vis.draw(folder)
    youtube_vis.draw(folder, dataset="ovis", counts={"train": 1})  # of one size: batches are not padded
    return folder


@pytest.fixture(autouse=True)
def datasets(root, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))


@pytest.fixture(scope="module")
def alone(root, tmp_path_factory):
    """The folder of an undisturbed run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root))
        run(folder)
    return folder


def test_a_run_trains_and_evaluates(alone, root):
    losses, results = read_metrics(alone / "metrics.json")[-2:]
    values = [value for name, value in losses.items() if "loss" in name]
    assert len(values) >= 6 and all(math.isfinite(value) for value in values)
    assert {"segm/AP", "segm/AP50", "segm/AR1", "segm/AR10", "segm/AP-person"} <= results.keys()
    file = alone / "inference/results.json"
    tracks = json.loads(file.read_text())
    assert [track["video_id"] for track in tracks] == [1] * 10 + [2] * 10 + [3] * 10
    assert {len(track["segmentations"]) for track in tracks} == {1, youtube_vis.LENGTH}
    assert {track["category_id"] for track in tracks} <= {*range(1, 41)}
    scores = score("video", "--gt", root / "ytvis_2019/train.json", "--results", file)
    found = {f"segm/{name}": value for name, value in scores.items()}
    measured = {name: math.nan if results[name] is None else results[name] for name in found}
    assert found == pytest.approx(measured, nan_ok=True)


def test_a_resumed_run_ends_as_an_undisturbed_one(alone, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(alone, folder, ignore=shutil.ignore_patterns("*final*", "inference"))
    (folder / POINTER).write_text("model_0000001.pth")
    lines = (folder / "metrics.json").read_text().splitlines(keepends=True)
    (folder / "metrics.json").write_text("".join(lines[:1] if '"iteration": 1' in lines[0] else []))
    run(folder, "--resume")
    assert re.search("steps 2 to 4", (folder / "log.txt").read_text())
    assert_same_weights(folder, alone)
    assert (folder / "inference/results.json").read_text() == (alone / "inference/results.json").read_text()


def test_two_processes_give_the_run_of_one(root, server, tmp_path):
    options = {**OVIS, "DATASETS__TEST": TRAIN}  # of several videos, which the processes share
    flags = ["--config-file", R50, "--num-processes", "2", *arguments(**options)]
    environ = {"DETECTRON2_DATASETS": str(root)}
    server.start(tmp_path / "two", *flags, environ=environ).finish(seconds=120)
    run(tmp_path / "one", **options)
    folders = tmp_path / "two", tmp_path / "one"
    assert_close(*([mean_losses(folder), curve(folder)[-1]] for folder in folders))
    found, expected = (json.loads((folder / "inference/results.json").read_text()) for folder in folders)
    assert [track["video_id"] for track in found] == [track["video_id"] for track in expected]
    assert [track["score"] for track in found] == pytest.approx(
        [track["score"] for track in expected], rel=1e-2
    )


def mean_losses(folder):
    """Return the losses averaged over all steps; a slow run logs some of them in a line of their own."""
    lines = [line for line in curve(folder) if "total_loss" in line]
    steps = np.diff([-1, *(line["iteration"] for line in lines)])
    losses = [name for name in lines[0] if "loss" in name]
    return {name: float(np.average([line[name] for line in lines], weights=steps)) for name in losses}


def test_a_set_without_tracks_gets_a_results_file(tmp_path, alone, caplog):
    weights = alone / "model_final.pth"
    run(tmp_path, "--eval-only", MODEL__WEIGHTS=weights, DATASETS__TEST=("ytvis_2019_val",))
    tracks = json.loads((tmp_path / "inference/results.json").read_text())
    assert {track["video_id"] for track in tracks} == {11, 12}
    assert (
        "valid.json has no annotations: the results are saved, not scored"
        in (tmp_path / "log.txt").read_text()
    )


def test_ovis_and_clips_of_one_and_of_three_frames(tmp_path):
    for frames in (1, 3):
        folder = tmp_path / str(frames)
        run(folder, INPUT__SAMPLING_FRAME_NUM=frames, VIS_PERIOD=1, SOLVER__MAX_ITER=1, **OVIS)
        assert 0 <= read_metrics(folder / "metrics.json")[-1]["segm/AP"] <= 100
        assert (folder / "images/step_0000000.jpg").exists()


def test_the_video_model_also_trains_on_images(root, tmp_path):
    coco.draw(root)
    images = {"DATASETS__TRAIN": ("coco_2017_train",), "DATASETS__TEST": ("coco_2017_val",)}
    run(tmp_path, INPUT__DATASET_MAPPER_NAME="mask_former_instance", SOLVER__MAX_ITER=1, **images)
    assert {"segm/AP", "segm/AP-person"} <= read_metrics(tmp_path / "metrics.json")[-1].keys()


def test_overfitting_trains_and_tests_on_the_first_videos(tmp_path):
    run(tmp_path, "--overfit", "1", DATASETS__TEST=("ytvis_2019_val",), SOLVER__MAX_ITER=2)
    tracks = json.loads((tmp_path / "inference/results.json").read_text())
    assert {track["video_id"] for track in tracks} == {1}
    assert "segm/AP" in read_metrics(tmp_path / "metrics.json")[-1]


@pytest.mark.parametrize("key", ["BOUNDARY", "PROPOSALS"])
def test_options_that_change_nothing_on_videos_are_named(tmp_path, alone, key):
    weights = alone / "model_final.pth"
    run(tmp_path, "--eval-only", MODEL__WEIGHTS=weights, **{f"TEST__{key}": True})
    assert f"TEST.{key} changes nothing that is measured on" in (tmp_path / "log.txt").read_text()
