"""Training targets compared with the ground truth in the downloaded files of a dataset."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from dataset_cases import Case
from oracle_predictions import GROUND_TRUTHS, THINGS, GroundTruth, Region

from mask2former.config import load_config
from mask2former.data.loader import load_training_data
from mask2former.data.mapper import build_train_mapper
from mask2former.data.records import Datasets
from mask2former.structures import Instances

TASKS = ("semantic", "instance", "panoptic")


def expected(truth: GroundTruth, case: Case) -> list[Region]:
    """Return the targets of an image for a dataset of one task, whose things may be numbered from 0."""
    if case.task == "instance":
        return [Region(THINGS[case.tree].index(category), mask) for category, mask in truth.objects]
    return task_regions(truth, case.task)


def task_regions(truth: GroundTruth, task: str) -> list[Region]:
    """Return the targets of an image for a task, with panoptic class ids."""
    if task == "semantic":
        return [Region(c, truth.labels == c) for c in np.unique(truth.labels).tolist() if c >= 0]
    return truth.objects if task == "instance" else [region for region in truth.segments if region.mask.any()]


def in_order(regions: list[Region]) -> list[tuple[int, bytes]]:
    return sorted((category, mask.tobytes()) for category, mask in regions)


def regions_of(instances: Instances) -> list[Region]:
    return [
        Region(category, mask)
        for category, mask in zip(instances.gt_classes.tolist(), instances.gt_masks.numpy(), strict=True)
    ]


def check_task_targets(case: Case, task: str, root: Path) -> None:
    """Compare the targets of SOLVER.TASKS with the files below `root`, image by image."""
    cfg = load_config(case.config, case.options(SOLVER__TASKS=(task,)))
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST  # the split of the oracle predictions
    trained = load_training_data(cfg, Datasets())
    mapper = replace(build_train_mapper(cfg, trained.metadata), augmentations=())
    truths, seen = GROUND_TRUTHS[case.tree](root), 0
    for record in trained.records:
        truth, sample = truths.pop(Path(record["file_name"]).stem), mapper(record, seed=0)
        wanted = task_regions(truth, task)
        assert sample["task"] == task
        assert in_order(regions_of(sample["instances"])) == in_order(wanted)
        seen += len(wanted)
    assert not truths and seen > 3
