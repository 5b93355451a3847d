"""`add_maskformer2_config` on Detectron2's own config, and our files and flags in it."""

from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.projects.deeplab import add_deeplab_config

from mask2former import add_maskformer2_config
from mask2former.config import load_config
from mask2former.config.yaml_files import flatten
from mask2former.detectron2_host.running import host_config

CONFIGS = Path(__file__).parents[2] / "configs"
# Presets of finetune/ accumulate gradients ("auto"), which Detectron2 neither does nor reads.
FILES = sorted(
    path
    for path in CONFIGS.rglob("*.yaml")
    if not {"_base_", "finetune"} & {*path.parts} and not path.name.startswith("Base-")
)


def as_lists(value):
    return list(value) if isinstance(value, tuple) else value


def test_keys_that_detectron2_has_keep_its_defaults():
    cfg, plain = get_cfg(), get_cfg()
    add_maskformer2_config(cfg)
    values = flatten(cfg)
    assert {key: values[key] for key in flatten(plain)} == flatten(plain)
    assert cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES == 100 and cfg.SOLVER.OPTIMIZER == "ADAMW"


def test_deeplabs_keys_may_come_first_or_last():
    first, last = get_cfg(), get_cfg()
    add_deeplab_config(first)
    add_maskformer2_config(first)
    add_maskformer2_config(last)
    add_deeplab_config(last)
    assert first == last


@pytest.mark.parametrize("file", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_each_of_our_files_says_the_same_in_both_hosts(file):
    cfg, ours = get_cfg(), flatten(load_config(file))
    add_deeplab_config(cfg)
    add_maskformer2_config(cfg)
    cfg.merge_from_file(str(file))
    theirs, converted = flatten(cfg), flatten(host_config(load_config(file)))
    assert {key: as_lists(converted[key]) for key in ours.keys() - {"MODEL.DEVICE"}} == {
        key: as_lists(value) for key, value in ours.items() if key != "MODEL.DEVICE"
    }
    differing = {key for key in ours if as_lists(theirs[key]) != as_lists(ours[key])}
    assert differing <= {"MODEL.DEVICE"}, differing
