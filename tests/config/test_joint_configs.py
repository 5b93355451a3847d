"""Configs of joint training and of specialists: what they change in the panoptic config beside them."""

import pytest

from mask2former.config import config_names, load_config
from mask2former.config.yaml_files import flatten
from mask2former.data import MetadataCatalog
from mask2former.engine.evaluate import choose_evaluators, tasks_on

TASKS = ("semantic", "instance", "panoptic")
JOINT = [name for name in config_names() if "/joint-segmentation/" in name]
SCENES = "scenes/{}-segmentation/maskformer2_R18_bs8_scenes.yaml"
OUTPUTS = [f"MODEL.MASK_FORMER.TEST.{task.upper()}_ON" for task in TASKS]


def changes(name, base):
    """Return the keys that differ between two configs, with the values of the first."""
    values, others = flatten(load_config(name)), flatten(load_config(base))
    return {key: value for key, value in values.items() if value != others[key]}


def test_there_is_a_joint_config_for_each_dataset_and_a_small_and_a_large_backbone():
    assert sorted({name.split("/")[0] for name in JOINT}) == ["ade20k", "cityscapes", "coco", "scenes"]
    assert [sum(backbone in name for name in JOINT) for backbone in ("R50", "swin_large", "R18")] == [3, 3, 1]


@pytest.mark.parametrize("name", JOINT)
def test_joint_configs_change_the_tasks_alone_and_measure_all_three(name):
    assert changes(name, name.replace("/joint-", "/panoptic-")) == {"SOLVER.TASKS": TASKS}
    cfg = load_config(name)
    assert tuple(tasks_on(cfg)) == TASKS
    for dataset in cfg.DATASETS.TEST:
        metadata = MetadataCatalog.get(dataset)
        assert tuple(choose_evaluators(metadata, TASKS)) == TASKS


def test_specialists_on_scenes_differ_from_the_panoptic_config_by_their_targets():
    instance = changes(SCENES.format("instance"), SCENES.format("panoptic"))
    assert instance == {
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 8,
        "DATASETS.TRAIN": ("scenes_instance_train",),
        "DATASETS.TEST": ("scenes_instance_val",),
        "INPUT.DATASET_MAPPER_NAME": "coco_instance_lsj",
        **dict.fromkeys([OUTPUTS[0], OUTPUTS[2]], False),
    }
    semantic = changes(SCENES.format("semantic"), SCENES.format("panoptic"))
    assert semantic == {
        "INPUT.DATASET_MAPPER_NAME": "mask_former_semantic",
        "INPUT.MIN_SIZE_TRAIN": (192,),
        "INPUT.SIZE_DIVISIBILITY": 192,
        **dict.fromkeys(OUTPUTS[1:], False),
    }
