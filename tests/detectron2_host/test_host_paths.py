"""Addresses that a handler of Detectron2's PathManager reads are read by ours inside it."""

import pytest
import torch
from detectron2.data import DatasetCatalog as HostDatasets
from detectron2.data import MetadataCatalog as HostMetadata
from detectron2.data import build_detection_train_loader
from detectron2.data.datasets import register_coco_instances
from detectron2.utils.file_io import PathHandler, PathManager

from mask2former.detectron2_host import DatasetMapper, Trainer
from mask2former.weights.load import load_weights

SHELF, NAME = "shelf://", "on_the_shelf"


class Shelf(PathHandler):
    """`shelf://a/b` is the file a/b of a folder."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def _get_supported_prefixes(self):
        return [SHELF]

    def _get_local_path(self, path, force=False, **kwargs):
        return str(self.folder / path.removeprefix(SHELF))

    def _open(self, path, mode="r", buffering=-1, **kwargs):
        return open(self._get_local_path(path), mode, buffering)

    def _exists(self, path, **kwargs):
        return (self.folder / path.removeprefix(SHELF)).exists()


@pytest.fixture
def shelf(tiny_shapes):
    """A dataset that a user registered there, at addresses."""
    PathManager.register_handler(Shelf(tiny_shapes))
    annotations = f"{SHELF}shapes/annotations/instances_train.json"
    register_coco_instances(NAME, {}, annotations, f"{SHELF}shapes/train")
    yield tiny_shapes
    HostDatasets.remove(NAME)
    HostMetadata.remove(NAME)


@pytest.fixture
def cfg(shelf, host_cfg, tmp_path):
    return host_cfg(
        DATASETS__TRAIN=(NAME,),
        DATASETS__TEST=(NAME,),
        INPUT__DATASET_MAPPER_NAME="coco_instance_lsj",
        MODEL__MASK_FORMER__TEST__SEMANTIC_ON=False,
        MODEL__MASK_FORMER__TEST__PANOPTIC_ON=False,
        SOLVER__MAX_ITER=1,
        OUTPUT_DIR=str(tmp_path),
    )


def test_our_mapper_reads_there(cfg):
    batch = next(iter(build_detection_train_loader(cfg, mapper=DatasetMapper(cfg))))
    assert all(sample["file_name"].startswith(SHELF) for sample in batch)
    assert all(len(sample["instances"]) for sample in batch)


def test_training_evaluation_and_weights(cfg, shelf, tmp_path):
    cfg.MODEL.WEIGHTS = f"{SHELF}start.pth"
    torch.manual_seed(0)
    start = Trainer.build_model(cfg).state_dict()
    torch.save({"model": start}, shelf / "start.pth")
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    assert all(torch.equal(value, start[name]) for name, value in trainer.model.state_dict().items())
    trainer.train()
    assert "AP" in trainer._last_eval_results["segm"]


def test_what_is_on_no_shelf_is_said(cfg):
    record = {**HostDatasets.get(NAME)[0], "file_name": f"{SHELF}nowhere.jpg"}
    with pytest.raises(ValueError, match=r"shelf://nowhere\.jpg.*no such file"):
        DatasetMapper(cfg)(record)
    with pytest.raises(ValueError, match=r"nobodys://start\.pth: .*no handler that reads it is registered"):
        load_weights(Trainer.build_model(cfg), "nobodys://start.pth")
