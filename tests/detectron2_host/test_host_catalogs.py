"""Each side's datasets are in the other side's catalogs."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog as HostDatasets
from detectron2.data import MetadataCatalog as HostMetadata
from detectron2.data import build_detection_train_loader
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BoxMode
from detectron2.utils.visualizer import Visualizer
from PIL import Image
from pycocotools import mask as coco_mask

from mask2former.data import DatasetCatalog, MetadataCatalog, build_train_loader, register_coco_panoptic
from mask2former.detectron2_host import DatasetMapper
from mask2former.engine.setup.dataset_facts import dataset_facts, dataset_metadata

SHAPES = "shapes_panoptic_train"


def test_our_datasets_are_in_detectron2s_catalogs(tiny_shapes):
    assert set(DatasetCatalog.list()) <= set(HostDatasets.list())
    assert HostDatasets.get(SHAPES) == DatasetCatalog.get(SHAPES) != []
    facts = HostMetadata.get(SHAPES)
    assert facts.thing_classes == MetadataCatalog.get(SHAPES).thing_classes
    assert facts.as_dict() == MetadataCatalog.get(SHAPES).as_dict()
    assert facts.get("no_such_fact") is None and not hasattr(facts, "no_such_fact")


def test_facts_depend_on_the_environment_as_on_our_side(tiny_shapes, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/elsewhere")
    assert HostMetadata.get(SHAPES).image_root.startswith("/elsewhere/")


def test_detectron2_gets_datasets_that_we_register_later(tiny_shapes):
    folder = tiny_shapes / "shapes"
    annotations = folder / "annotations" / "panoptic_val.json"
    HostMetadata.get("later").note = "set before"
    register_coco_panoptic("later", {}, folder / "val", folder / "panoptic_val", annotations)
    assert HostDatasets.get("later") == DatasetCatalog.get("later")
    assert HostMetadata.get("later").note == "set before"
    assert HostMetadata.get("later").evaluator_type == "coco_panoptic_seg"


def test_each_side_keeps_its_dataset_of_the_same_name():
    name = "coco_2017_val_panoptic"
    assert "json_file" in MetadataCatalog.get(name).as_dict()
    assert not isinstance(HostMetadata.get(name), type(HostMetadata.get(SHAPES)))


def test_an_unknown_name_is_an_error_on_both_sides():
    with pytest.raises(ValueError, match="no dataset is called 'nowhere'"):
        DatasetCatalog.get("nowhere")
    with pytest.raises(KeyError, match="nowhere"):
        HostDatasets.get("nowhere")


def test_we_train_on_a_users_dataset_of_detectron2(tiny_shapes, host_cfg, our_cfg):
    records = DatasetCatalog.get(SHAPES)
    HostDatasets.register("users", lambda: records)
    HostMetadata.get("users").set(
        stuff_classes=["a", "b", "c", "d", "e"], thing_dataset_id_to_contiguous_id={1: 0, 2: 1, 3: 2}
    )
    assert "users" in DatasetCatalog and DatasetCatalog.get("users") == records
    cfg = our_cfg(DATASETS__TRAIN=("users",), DATASETS__TEST=())
    assert dataset_facts(dataset_metadata(cfg))["MODEL.SEM_SEG_HEAD.NUM_CLASSES"] == 5
    assert len(next(iter(build_train_loader(cfg)))) == 2
    there = host_cfg(DATASETS__TRAIN=("users",), DATASETS__TEST=())
    batch = next(iter(build_detection_train_loader(there, mapper=DatasetMapper(there))))
    assert all(sample["instances"].gt_masks.tensor.any((1, 2)).all() for sample in batch)


def test_the_visualizer_finds_the_name_of_each_thing():
    facts = HostMetadata.get("ade20k_panoptic_val")  # its things are not the first classes
    for number in MetadataCatalog.get("ade20k_panoptic_val").thing_ids:
        assert facts.thing_classes[number] == facts.stuff_classes[number]
        assert facts.thing_colors[number] == facts.stuff_colors[number]
    ids = torch.ones(20, 30, dtype=torch.int32)
    segments = [{"id": 1, "isthing": True, "category_id": max(facts.thing_ids)}]
    image = Visualizer(np.zeros((20, 30, 3), np.uint8), facts).draw_panoptic_seg(ids, segments)
    assert image.get_image().any()


@pytest.mark.parametrize("sampler", ["TrainingSampler", "RepeatFactorTrainingSampler"])
@pytest.mark.parametrize("grouped", [True, False])
def test_the_mapper_gets_the_classes_of_a_coco_file_that_is_not_read_yet(
    tiny_shapes, host_cfg, sampler, grouped
):
    folder = tiny_shapes / "shapes"
    annotations = folder / "annotations" / "instances_train.json"
    register_coco_instances("a_file", {}, str(annotations), str(folder / "train"))
    loading = {"DATALOADER__SAMPLER_TRAIN": sampler, "DATALOADER__REPEAT_THRESHOLD": 0.5}
    cfg = host_cfg(DATASETS__TRAIN=("a_file",), INPUT__DATASET_MAPPER_NAME="coco_instance_lsj", **loading)
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouped
    mapper = DatasetMapper(cfg)  # before anything has read the file
    batch = next(iter(build_detection_train_loader(cfg, mapper=mapper)))
    assert len(batch) == 2 and all(sample["instances"].gt_classes.max() < 3 for sample in batch)


def records_of_detectron2(file):
    """Return a rectangle in each form that Detectron2 reads, a crowd, and entries that we do not read."""
    Image.new("RGB", (80, 60), "gray").save(file)
    mask = np.zeros((60, 80), np.uint8, order="F")
    mask[20:50, 10:40] = 1
    corners = [10.0, 20.0, 40.0, 20.0, 40.0, 50.0, 10.0, 50.0]
    runs = np.diff(np.flatnonzero(np.diff(mask.ravel("F"), prepend=0)), prepend=0)
    counts = [*runs.tolist(), mask.size - int(runs.sum())]
    forms = ([corners], [np.array(corners)], coco_mask.encode(mask), {"size": [60, 80], "counts": counts})
    box = {"bbox": [10, 20, 30, 30], "bbox_mode": BoxMode.XYWH_ABS, "keypoints": [20, 30, 2]}
    annotations = [{**box, "category_id": i, "segmentation": form} for i, form in enumerate(forms)]
    annotations.append({**annotations[0], "iscrowd": 1})
    return [{"file_name": str(file), "image_id": "a/b", "annotations": annotations, "taken_by": "somebody"}]


def test_the_mapper_reads_all_forms_of_masks_without_class_names(host_cfg, tmp_path):
    HostDatasets.register("plain", lambda: records_of_detectron2(tmp_path / "image.png"))
    mapper = {"INPUT__DATASET_MAPPER_NAME": "mask_former_instance", "INPUT__MIN_SIZE_TRAIN": (60,)}
    cfg = host_cfg(DATASETS__TRAIN=("plain",), MODEL__SEM_SEG_HEAD__NUM_CLASSES=4, **mapper)
    sample = next(iter(build_detection_train_loader(cfg, mapper=DatasetMapper(cfg))))[0]
    assert (sample["image_id"], sample["taken_by"]) == ("a/b", "somebody") and "annotations" not in sample
    masks = sample["instances"].gt_masks.tensor
    assert sample["instances"].gt_classes.tolist() == [0, 1, 2, 3]
    assert masks[0].sum() == 900 and all(mask.equal(masks[0]) for mask in masks)
