"""Files at URLs of a handler of Detectron2's PathManager, read by our code."""

import pytest
import torch
from detectron2.data import DatasetCatalog as HostDatasets
from detectron2.data import build_detection_train_loader
from detectron2.data.datasets import register_coco_instances
from detectron2.utils.file_io import PathManager
from flaky_storage import PREFIX, FlakyStorage

from mask2former.detectron2_host import DatasetMapper, Trainer
from mask2former.weights.load import load_weights

NAME = "dataset_at_urls"


@pytest.fixture
def cfg(tiny_shapes, host_cfg, tmp_path, monkeypatch):
    """Return a config of a dataset that is registered in Detectron2 with URLs of a user's handler."""
    monkeypatch.setenv("FLAKY_STORAGE", str(tiny_shapes))
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    PathManager.register_handler(FlakyStorage(failing=[False]))
    annotations = f"{PREFIX}shapes/annotations/instances_train.json"
    register_coco_instances(NAME, {}, annotations, f"{PREFIX}shapes/train")
    return host_cfg(
        DATASETS__TRAIN=(NAME,),
        DATASETS__TEST=(NAME,),
        INPUT__DATASET_MAPPER_NAME="coco_instance_lsj",
        MODEL__MASK_FORMER__TEST__SEMANTIC_ON=False,
        MODEL__MASK_FORMER__TEST__PANOPTIC_ON=False,
        SOLVER__MAX_ITER=1,
        OUTPUT_DIR=str(tmp_path),
    )


def test_our_mapper_reads_urls_of_detectron2s_handlers(cfg):
    batch = next(iter(build_detection_train_loader(cfg, mapper=DatasetMapper(cfg))))
    assert all(sample["file_name"].startswith(PREFIX) for sample in batch)
    assert all(len(sample["instances"]) for sample in batch)


def test_training_evaluation_and_weights_at_urls(cfg, tiny_shapes):
    cfg.MODEL.WEIGHTS = f"{PREFIX}start.pth"
    torch.manual_seed(0)
    start = Trainer.build_model(cfg).state_dict()
    torch.save({"model": start}, tiny_shapes / "start.pth")
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    assert all(torch.equal(value, start[name]) for name, value in trainer.model.state_dict().items())
    trainer.train()
    assert "AP" in trainer._last_eval_results["segm"]


def test_the_error_for_a_missing_file_gives_the_url(cfg):
    record = {**HostDatasets.get(NAME)[0], "file_name": f"{PREFIX}nowhere.jpg"}
    with pytest.raises(ValueError, match=r"flaky://nowhere\.jpg.*no such file"):
        DatasetMapper(cfg)(record)
    with pytest.raises(ValueError, match=r"nobodys://start\.pth: .*no handler that reads it is registered"):
        load_weights(Trainer.build_model(cfg), "nobodys://start.pth")
