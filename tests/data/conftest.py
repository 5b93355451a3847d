"""The synthetic COCO dataset on disk and in the catalogs, and a config for it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from synthetic_coco import SyntheticCoco, write_dataset

from mask2former.config import get_cfg
from mask2former.data import DatasetCatalog, MetadataCatalog, register_coco_instances, register_coco_panoptic


@pytest.fixture
def synthetic(tmp_path: Path) -> SyntheticCoco:
    return write_dataset(tmp_path / "synthetic")


@pytest.fixture
def names(synthetic: SyntheticCoco) -> Iterator[dict[str, str]]:
    """Register the synthetic dataset; task -> name."""
    register_coco_instances("synthetic_instances", {}, synthetic.instances_json, synthetic.images)
    register_coco_panoptic(
        "synthetic_panoptic", {}, synthetic.images, synthetic.panoptic_root, synthetic.panoptic_json
    )
    yield {"instance": "synthetic_instances", "panoptic": "synthetic_panoptic"}
    for name in ("synthetic_instances", "synthetic_panoptic"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def cfg(names: dict[str, str]):
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = (names["instance"],)
    cfg.INPUT.DATASET_MAPPER_NAME = "coco_instance_lsj"
    cfg.INPUT.FORMAT, cfg.INPUT.IMAGE_SIZE = "RGB", 32
    cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = 2, 0
    cfg.SEED = 11
    return cfg
