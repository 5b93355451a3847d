"""Three real images of ADE20K: prepared, trained on for two steps, and one of them evaluated."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from dataset_cases import ALL_METRICS, CASES, JOINT_CASES
from PIL import Image
from script_runs import run
from training_targets import TASKS, check_task_targets

from mask2former.engine.metrics_log import read_metrics
from mask2former.tools.train import main

FOLDER = "ADEChallengeData2016"
ADE20K = [case for case in (*CASES, *JOINT_CASES) if case.tree == "ade20k"]


@pytest.fixture(scope="session")
def prepared_sample(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Filled by the first test that has the samples."""
    return {"root": tmp_path_factory.mktemp("ade20k-sample")}


@pytest.fixture
def sample(shared: Path, prepared_sample: dict[str, Path]) -> Path:
    """The root of the prepared sample."""
    root = prepared_sample["root"]
    if not (root / FOLDER).exists():
        source = shared / "data/samples/ade20k_challenge_derived" / FOLDER
        (root / FOLDER).mkdir()
        for part in ("images", "annotations", "annotations_instance"):
            (root / FOLDER / part).symlink_to(source / part)
        run("prepare_ade20k", root)
    return root


@pytest.mark.parametrize("case", ADE20K, ids=str)
def test_real_images_are_prepared_trained_on_and_evaluated(case, sample, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(sample))
    out = tmp_path / "run"
    options = case.options(OUTPUT_DIR=out, INPUT__MIN_SIZE_TRAIN=[64, 96], TEST__SAVE_PREDICTIONS=True)
    assert main(["--config-file", case.config, *options]) == 0
    losses, results = read_metrics(out / "metrics.json")
    assert all(math.isfinite(value) for name, value in losses.items() if "loss" in name)
    (truth,) = (sample / FOLDER / "annotations/validation").iterdir()
    assert {name.split("/")[0] for name in results if "/" in name} == set(case.tasks)
    if case.task == "semantic":
        shown = set(np.unique(np.asarray(Image.open(truth))).tolist()) - {0}
        measured = [name for name, value in results.items() if "IoU-" in name and value is not None]
        assert len(measured) == len(shown)
        saved = Image.open(out / "inference/submission/semantic" / truth.name)
        assert saved.size == Image.open(truth).size and np.asarray(saved).min() >= 1
    if "panoptic_seg" in case.tasks:
        (row,) = json.loads((out / "inference/submission/panoptic.json").read_text())["annotations"]
        assert row["image_id"] == truth.stem
    for task in case.tasks:
        assert 0 <= results[f"{task}/{ALL_METRICS[task]}"] <= 100


@pytest.mark.parametrize("task", TASKS)
def test_targets_of_a_task_on_a_real_image_equal_its_files(task, sample, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(sample))
    check_task_targets(ADE20K[-1], task, sample)
