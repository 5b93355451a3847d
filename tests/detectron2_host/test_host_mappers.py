"""Our mapper in Detectron2's loaders."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper as HostDatasetMapper
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.structures import BitMasks, Boxes, BoxMode

import mask2former
from mask2former.data import DatasetCatalog, MetadataCatalog, build_test_loader
from mask2former.data.mapper import build_train_mapper
from mask2former.detectron2_host import DatasetMapper

NAMES = {
    "COCOInstanceNewBaselineDatasetMapper": "coco_instance_lsj",
    "COCOPanopticNewBaselineDatasetMapper": "coco_panoptic_lsj",
    "DETRPanopticDatasetMapper": "detr_panoptic",
    "MaskFormerInstanceDatasetMapper": "mask_former_instance",
    "MaskFormerPanopticDatasetMapper": "mask_former_panoptic",
    "MaskFormerSemanticDatasetMapper": "mask_former_semantic",
}
TRAIN, VAL = "shapes_panoptic_train", "shapes_panoptic_val"
TRIANGLE = {"category_id": 1, "segmentation": [[10, 10, 90, 10, 90, 80]]}


@pytest.mark.parametrize("name", NAMES)
def test_each_published_name_is_our_mapper_for_that_task(name, host_cfg, our_cfg):
    record = {**DatasetCatalog.get(TRAIN)[0], "annotations": [TRIANGLE]}
    cfg = our_cfg(INPUT__DATASET_MAPPER_NAME=NAMES[name], INPUT__MIN_SIZE_TRAIN=(96,))
    ours = build_train_mapper(cfg, MetadataCatalog.get(TRAIN))
    theirs = getattr(mask2former, name)(host_cfg(INPUT__MIN_SIZE_TRAIN=(96,)), True)
    np.random.seed(5)
    sample = theirs(record)
    expected = ours(record, sample["seed"])
    assert torch.equal(sample["image"], expected["image"])
    instances = sample["instances"]
    assert isinstance(instances.gt_masks, BitMasks) and isinstance(instances.gt_boxes, Boxes)
    assert torch.equal(instances.gt_masks.tensor, expected["instances"].gt_masks)
    assert torch.equal(instances.gt_classes, expected["instances"].gt_classes)
    assert len(instances) > 0
    np.random.seed(5)
    assert theirs(record)["seed"] == sample["seed"] != theirs(record)["seed"]


@pytest.mark.parametrize("workers", [0, 2])
def test_detectron2s_train_loader_feeds_our_model(host_cfg, workers):
    cfg = host_cfg(DATALOADER__NUM_WORKERS=workers)
    loader = iter(build_detection_train_loader(cfg, mapper=DatasetMapper(cfg)))
    batches = [next(loader) for _ in range(4)]
    assert len({sample["seed"] for batch in batches for sample in batch}) == 8
    model = mask2former.detectron2_host.Trainer.build_model(cfg)
    assert all(torch.isfinite(loss) for loss in model(batches[0]).values())


def test_detectron2s_test_loader_gives_the_inputs_of_ours(host_cfg, our_cfg):
    cfg = host_cfg()
    theirs = build_detection_test_loader(cfg, VAL, mapper=DatasetMapper(cfg, False))
    for (mine,), (other,) in zip(build_test_loader(our_cfg(), VAL), theirs, strict=True):
        assert torch.equal(mine.pop("image"), other.pop("image")) and mine == other


@pytest.mark.parametrize("form", ["polygon", "bitmask"])
def test_detectron2s_own_mapper_feeds_our_model(host_cfg, form):
    box = {"bbox": [10, 10, 90, 80], "bbox_mode": BoxMode.XYXY_ABS}
    record = {**DatasetCatalog.get(TRAIN)[0], "annotations": [{**TRIANGLE, **box}]}
    cfg = host_cfg(MODEL__MASK_ON=True, INPUT__MASK_FORMAT=form, INPUT__MIN_SIZE_TRAIN=(96,))
    model = mask2former.detectron2_host.Trainer.build_model(cfg)
    for annotated in (record, {**record, "annotations": []}):
        losses = model([HostDatasetMapper(cfg, True)(annotated)])
        assert all(torch.isfinite(loss) for loss in losses.values())
        assert (losses["loss_mask"] > 0) == bool(annotated["annotations"])


def test_no_dataset_is_an_error(host_cfg):
    with pytest.raises(ValueError, match=r"DATASETS.TRAIN is empty"):
        DatasetMapper(host_cfg(DATASETS__TRAIN=()))


def test_copy_paste_is_refused_because_a_mapper_knows_one_record(host_cfg):
    with pytest.raises(ValueError, match=r"COPY_PASTE needs all records .* use the project's Trainer$"):
        DatasetMapper(host_cfg(INPUT__COPY_PASTE__PROBABILITY=0.5))
