"""Every published config, made tiny, runs from the command line: two steps on its dataset, and evaluation."""

import math

import pytest
from dataset_cases import ALL_METRICS, CASES, MASKFORMER_RUNS, PUBLISHED, RUNS, each_of

from mask2former.engine.metrics_log import read_metrics
from mask2former.tools.train import main


def test_all_published_configs_are_run():
    assert {config for _, config in RUNS + MASKFORMER_RUNS} == set(PUBLISHED) and len(PUBLISHED) > 70


def fewest_losses(config):
    """Return the losses of two predictions, 3 or 1 each; the plain per-pixel baseline predicts once."""
    name = config.rpartition("/")[2]
    per_pixel = {"per_pixel_baseline_plus": 2, "per_pixel_baseline": 1}
    return next((count for start, count in per_pixel.items() if name.startswith(start)), 6)


@each_of(RUNS + MASKFORMER_RUNS)
def test_two_steps_and_an_evaluation(case, config, root, tmp_path):
    out = tmp_path / "run"
    depth = 50 if "R101c" in config else 18  # DeepLab's ResNet has bottlenecks alone
    assert main(["--config-file", config, *case.options(OUTPUT_DIR=out, MODEL__RESNETS__DEPTH=depth)]) == 0
    losses, results = read_metrics(out / "metrics.json")
    values = [value for name, value in losses.items() if "loss" in name]
    assert len(values) >= fewest_losses(config) and all(math.isfinite(value) for value in values)
    assert {name.split("/")[0] for name in results if "/" in name} == set(case.tasks)
    for task in case.tasks:
        assert 0 <= results[f"{task}/{ALL_METRICS[task]}"] <= 100


@pytest.mark.parametrize("case", [case for case in CASES if case.task == "semantic"], ids=str)
def test_test_time_augmentation_runs(case, root, tmp_path):
    options = {"TEST__AUG__ENABLED": True, "TEST__AUG__MIN_SIZES": [32, 48], "OUTPUT_DIR": tmp_path / "run"}
    assert main(["--config-file", case.config, *case.options(**options)]) == 0
    assert 0 <= read_metrics(tmp_path / "run/metrics.json")[-1]["sem_seg/mIoU"] <= 100
