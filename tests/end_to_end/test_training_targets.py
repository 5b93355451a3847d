"""Training targets equal the ground truth in the downloaded files, after preparation, reader and mapper."""

from dataclasses import replace
from pathlib import Path

import pytest
from dataset_cases import CASES, JOINT_CASES
from oracle_predictions import GROUND_TRUTHS
from training_targets import TASKS, check_task_targets, expected, in_order, regions_of

from mask2former.config import load_config
from mask2former.data import DatasetCatalog, MetadataCatalog
from mask2former.data.mapper import build_train_mapper


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


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("case", JOINT_CASES, ids=str)
def test_targets_of_a_task_equal_its_ground_truth_with_panoptic_class_ids(case, task, root):
    check_task_targets(case, task, root)
