"""Datasets of either side are known on the other."""

import pytest
from detectron2.data import DatasetCatalog as HostDatasets
from detectron2.data import MetadataCatalog as HostMetadata
from detectron2.data import build_detection_train_loader

from mask2former.data import DatasetCatalog, MetadataCatalog, build_train_loader, register_coco_panoptic
from mask2former.detectron2_host import DatasetMapper
from mask2former.engine.build import dataset_facts, dataset_metadata

SHAPES = "shapes_panoptic_train"


@pytest.fixture
def forgotten():
    """Names that are registered in a test; afterwards nobody knows them."""
    names = []
    yield names
    for name in names:
        for catalog in (HostDatasets, HostMetadata, DatasetCatalog, MetadataCatalog):
            if name in catalog.list():
                catalog.remove(name)


def test_our_datasets_are_in_detectron2s_catalogs(tiny_shapes):
    assert set(DatasetCatalog.list()) <= set(HostDatasets.list())
    assert HostDatasets.get(SHAPES) == DatasetCatalog.get(SHAPES) != []
    facts = HostMetadata.get(SHAPES)
    assert facts.thing_classes == MetadataCatalog.get(SHAPES).thing_classes
    assert facts.as_dict() == MetadataCatalog.get(SHAPES).as_dict()
    assert facts.get("no_such_fact") is None and not hasattr(facts, "no_such_fact")


def test_facts_follow_the_environment_as_on_our_side(tiny_shapes, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/elsewhere")
    assert HostMetadata.get(SHAPES).image_root.startswith("/elsewhere/")


def test_a_dataset_of_ours_registered_later_is_there_too(tiny_shapes, forgotten):
    forgotten.append("later")
    folder = tiny_shapes / "shapes"
    annotations = folder / "annotations" / "panoptic_val.json"
    HostMetadata.get("later").note = "set before"
    register_coco_panoptic("later", {}, folder / "val", folder / "panoptic_val", annotations)
    assert HostDatasets.get("later") == DatasetCatalog.get("later")
    assert HostMetadata.get("later").note == "set before"
    assert HostMetadata.get("later").evaluator_type == "coco_panoptic_seg"


def test_a_dataset_that_both_have_stays_each_sides_own():
    name = "coco_2017_val_panoptic"
    assert "json_file" in MetadataCatalog.get(name).as_dict()
    assert not isinstance(HostMetadata.get(name), type(HostMetadata.get(SHAPES)))


def test_what_is_unknown_to_both_is_an_error_on_both():
    with pytest.raises(ValueError, match="no dataset is called 'nowhere'"):
        DatasetCatalog.get("nowhere")
    with pytest.raises(KeyError, match="nowhere"):
        HostDatasets.get("nowhere")


def test_a_users_dataset_of_detectron2_is_trained_on_by_ours(tiny_shapes, host_cfg, our_cfg, forgotten):
    forgotten.append("users")
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
