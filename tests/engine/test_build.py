"""Dataset facts in the config, and devices."""

import json
import logging

import pytest
import torch
from tiny_runs import tiny_config

from mask2former.config import get_cfg, load_config
from mask2former.data import DatasetCatalog, MetadataCatalog, register_coco_instances
from mask2former.engine.build import build_model
from mask2former.engine.setup.dataset_facts import (
    checkpoint_metadata,
    class_names,
    dataset_metadata,
    with_dataset_facts,
)
from mask2former.engine.setup.device import launched_device, resolve_device

MASK_RCNN = "comparators/mask_rcnn/mask_rcnn_R50_bs16_36ep.yaml"
CLASSES = "MODEL.SEM_SEG_HEAD.NUM_CLASSES"


def test_a_model_of_detectron2_is_an_error_that_says_how_to_train_it():
    with pytest.raises(
        ValueError, match=r"GeneralizedRCNN, a model of Detectron2: install .*--host detectron2"
    ):
        build_model(load_config(MASK_RCNN))


def register(name, **facts):
    """Register a dataset, and return a config that trains on it."""
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).set(**facts)
    return training_on(name)


def training_on(*names):
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = names
    return cfg


PANOPTIC = {
    "thing_classes": ["cat", "dog"],
    "stuff_classes": ["sky", "cat", "sea", "dog"],
    "thing_dataset_id_to_contiguous_id": {90: 3, 7: 1},
    "ignore_label": 65,
    "evaluator_type": "coco_panoptic_seg",
}
SEMANTIC = {"stuff_classes": ["a", "b", "c"], "ignore_label": 255, "evaluator_type": "sem_seg"}
LVIS = {"thing_classes": ["cat", "dog"], "stuff_classes": ["sky"], "evaluator_type": "lvis"}
INSTANCE = {  # as in Cityscapes: it has stuff names, but its classes are the things
    "thing_classes": ["cat"],
    "stuff_classes": ["sky", "cat"],
    "thing_dataset_id_to_contiguous_id": {5: 0},
    "evaluator_type": "cityscapes_instance",
}


@pytest.mark.parametrize(
    ("facts", "classes", "ignore", "things"),
    [(PANOPTIC, 4, 65, [1, 3]), (SEMANTIC, 3, 255, []), (INSTANCE, 1, 255, [0]), (LVIS, 2, 255, [])],
)
def test_dataset_facts_replace_config_values_and_are_logged(caplog, facts, classes, ignore, things):
    cfg = register("facts_of_a_test", **facts)
    with caplog.at_level(logging.INFO):
        cfg = with_dataset_facts(cfg)
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == classes == len(class_names(dataset_metadata(cfg)))
    assert ignore == cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    assert list(cfg.MODEL.MASK_FORMER.THING_IDS) == things
    assert f"{CLASSES}: {classes}, as dataset 'facts_of_a_test' says" in caplog.text
    assert cfg.source(CLASSES) == "dataset 'facts_of_a_test'"
    caplog.clear()
    cfg.merge_from_list([CLASSES, classes])  # typed, but the same
    with_dataset_facts(cfg)
    assert not caplog.text


def test_a_typed_value_that_contradicts_the_dataset_is_an_error_naming_both():
    cfg = register("typed_against", **PANOPTIC)
    cfg.merge_from_list([CLASSES, 12])
    with pytest.raises(ValueError, match=rf"{CLASSES} was given as 12, but dataset 'typed_against' says 4"):
        build_model(cfg)


@pytest.mark.parametrize("names", [(), ("a_dataset_of_another_machine",)])
def test_without_a_registered_dataset_the_config_is_kept(names):
    cfg = training_on(*names)
    cfg.merge_from_list([CLASSES, 9])
    assert with_dataset_facts(cfg).MODEL.SEM_SEG_HEAD.NUM_CLASSES == 9


def test_without_a_training_dataset_the_test_dataset_defines_the_classes():
    cfg = register("only_for_tests", **PANOPTIC)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), cfg.DATASETS.TRAIN
    assert with_dataset_facts(cfg).MODEL.SEM_SEG_HEAD.NUM_CLASSES == 4


def test_a_users_coco_file_defines_its_classes(tmp_path):
    categories = [{"id": 7, "name": "cat"}, {"id": 90, "name": "dog"}]
    file = tmp_path / "instances.json"
    file.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    register_coco_instances("users_own", {}, str(file), str(tmp_path))
    cfg = with_dataset_facts(training_on("users_own"))
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 2
    assert list(cfg.MODEL.MASK_FORMER.THING_IDS) == [0, 1]


def test_checkpoint_metadata_is_plain():
    cfg = with_dataset_facts(register("with_colors", **PANOPTIC, stuff_colors=[(1, 2, 3)] * 4))
    assert checkpoint_metadata(dataset_metadata(cfg), cfg.MODEL.MASK_FORMER.THING_IDS) == {
        "thing_classes": ["cat", "dog"],
        "stuff_classes": ["sky", "cat", "sea", "dog"],
        "stuff_colors": [[1, 2, 3]] * 4,
        "thing_ids": [1, 3],
    }


def test_build_model_applies_the_facts_to_a_copy():
    register("for_building", **PANOPTIC)
    cfg = tiny_config(DATASETS__TRAIN=("for_building",))
    cfg.freeze()
    model = build_model(cfg)
    assert model.sem_seg_head.predictor.class_embed.out_features == 4 + 1
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 5


def test_panoptic_output_without_thing_classes_causes_a_warning(caplog):
    for things, warned in (([], True), ([1], False)):
        caplog.clear()
        build_model(tiny_config(DATASETS__TRAIN=(), DATASETS__TEST=(), MODEL__MASK_FORMER__THING_IDS=things))
        assert ("THING_IDS is empty" in caplog.text) == warned


def set_gpus(monkeypatch, number):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: number)


def test_devices(monkeypatch):
    set_gpus(monkeypatch, 0)
    assert resolve_device("auto").type == resolve_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match=r"'cuda', but this machine has 0 GPUs"):
        resolve_device("cuda")
    set_gpus(monkeypatch, 2)
    assert resolve_device("auto").type == "cuda"
    assert resolve_device("cuda:1").index == 1
    with pytest.raises(ValueError, match=r"'cuda:2', but this machine has 2 GPUs"):
        resolve_device("cuda:2")


def test_the_launched_device_and_the_device_of_the_config_must_agree(monkeypatch):
    set_gpus(monkeypatch, 2)
    assert launched_device("cuda", "cpu", None) == launched_device("auto", "cpu", 0) == "cpu"
    assert launched_device("auto", "cuda", 2) == "auto"
    assert launched_device("cuda:1", "cuda", None) == "cuda:1"
    assert launched_device("cpu", "cuda", None) == "cpu"  # one process, without --num-gpus
    with pytest.raises(ValueError, match=r"--num-gpus 1, but MODEL\.DEVICE is 'cpu'.*--num-processes"):
        launched_device("cpu", "cuda", 1)
    monkeypatch.setattr("mask2former.engine.setup.device.world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"launched on GPUs, but MODEL\.DEVICE is 'cpu'"):
        launched_device("cpu", "cuda", None)
