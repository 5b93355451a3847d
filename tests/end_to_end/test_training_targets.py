"""Training targets equal the ground truth in the downloaded files, after preparation, reader and mapper."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dataset_cases import CASES, Case
from oracle_predictions import GROUND_TRUTHS, THINGS, GroundTruth, Region

from mask2former.config import load_config
from mask2former.data import DatasetCatalog, MetadataCatalog
from mask2former.data.loader import load_training_data
from mask2former.data.mapper import build_train_mapper
from mask2former.data.records import Datasets
from mask2former.structures import Instances

JOINT = [case for case in CASES if case.task == "panoptic" and not case.tree.startswith("mapillary")]


def expected(truth: GroundTruth, case: Case) -> list[Region]:
    if case.task == "semantic":
        return [Region(c, truth.labels == c) for c in np.unique(truth.labels).tolist() if c >= 0]
    if case.task == "panoptic":
        return [region for region in truth.segments if region.mask.any()]
    return [Region(THINGS[case.tree].index(category), mask) for category, mask in truth.objects]


def in_order(regions: list[Region]) -> list[tuple[int, bytes]]:
    return sorted((category, mask.tobytes()) for category, mask in regions)


def regions_of(instances: Instances) -> list[Region]:
    return [
        Region(category, mask)
        for category, mask in zip(instances.gt_classes.tolist(), instances.gt_masks.numpy(), strict=True)
    ]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_targets_equal_the_ground_truth(case, root):
    cfg = load_config(case.config, case.options())
    (name,) = cfg.DATASETS.TEST  # the split of the oracle predictions
    mapper = replace(build_train_mapper(cfg, MetadataCatalog.get(name)), augmentations=())
    truths = GROUND_TRUTHS[case.tree](root)
    seen = 0
    for record in DatasetCatalog.get(name):
        truth = truths.pop(Path(record["file_name"]).stem)
        targets = regions_of(mapper(record, seed=0)["instances"])
        assert in_order(targets) == in_order(expected(truth, case))
        seen += len(targets)
    assert not truths and seen > 3


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
@pytest.mark.parametrize("case", JOINT, ids=lambda case: case.tree)
def test_targets_of_a_task_equal_its_ground_truth_with_panoptic_class_ids(case, task, root):
    """Instances are those of the instance files where there are any."""
    cfg = load_config(case.config.replace("panoptic", "joint"), case.options(SOLVER__TASKS=(task,)))
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST  # the split of the oracle predictions
    trained = load_training_data(cfg, Datasets())
    mapper = replace(build_train_mapper(cfg, trained.metadata), augmentations=())
    truths = GROUND_TRUTHS[case.tree](root)
    seen = 0
    for record in trained.records:
        truth, sample = truths.pop(Path(record["file_name"]).stem), mapper(record, seed=0)
        wanted = truth.objects if task == "instance" else expected(truth, case._replace(task=task))
        assert sample["task"] == task
        assert in_order(regions_of(sample["instances"])) == in_order(wanted)
        seen += len(wanted)
    assert not truths and seen > 3
