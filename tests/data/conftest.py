"""The synthetic COCO dataset on disk and in the catalogs, and a config for it."""

import pytest
from catalogs import restored_catalogs
from synthetic_coco import write_dataset

from mask2former.config import get_cfg
from mask2former.data import register_coco_instances, register_coco_panoptic

__all__ = ["restored_catalogs"]


@pytest.fixture
def synthetic(tmp_path):
    return write_dataset(tmp_path / "synthetic")


@pytest.fixture
def names(synthetic, restored_catalogs):
    """Register the synthetic dataset; task -> name."""
    register_coco_instances("synthetic_instances", {}, synthetic.instances_json, synthetic.images)
    register_coco_panoptic(
        "synthetic_panoptic", {}, synthetic.images, synthetic.panoptic_root, synthetic.panoptic_json
    )
    return {"instance": "synthetic_instances", "panoptic": "synthetic_panoptic"}


@pytest.fixture
def cfg(names):
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = (names["instance"],)
    cfg.INPUT.DATASET_MAPPER_NAME = "coco_instance_lsj"
    cfg.INPUT.FORMAT, cfg.INPUT.IMAGE_SIZE = "RGB", 32
    cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = 2, 0
    cfg.SEED = 11
    return cfg
