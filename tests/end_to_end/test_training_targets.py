"""Training targets equal the ground truth in the downloaded files, after preparation, reader and mapper."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dataset_cases import CASES, Case
from oracle_predictions import GROUND_TRUTHS, THINGS, GroundTruth, Region

from mask2former.config import load_config
from mask2former.data import DatasetCatalog, MetadataCatalog
from mask2former.data.mapper import build_train_mapper
from mask2former.structures import Instances


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
