"""`add_maskformer2_config` on Detectron2's own config, with our files."""

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
# Keys whose defaults differ, by the kinds of models that do not read them
UNREAD = {
    "mask_rcnn": {"MODEL.SEM_SEG_HEAD.NAME", "MODEL.SEM_SEG_HEAD.IN_FEATURES"},
    "vit": {"MODEL.RESNETS.OUT_FEATURES"},
    "eomt": {"MODEL.RESNETS.OUT_FEATURES", "MODEL.SEM_SEG_HEAD.IN_FEATURES"},
}


def kind(file, cfg):
    """Return the kind of model of a config, a key of UNREAD or another word."""
    if cfg.MODEL.META_ARCHITECTURE == "EoMT":
        return "eomt"
    return "vit" if "ViT" in cfg.MODEL.BACKBONE.NAME else file.parent.name


def test_keys_of_detectron2_keep_their_defaults():
    cfg, plain = get_cfg(), get_cfg()
    add_maskformer2_config(cfg)
    values = flatten(cfg)
    assert {key: values[key] for key in flatten(plain)} == flatten(plain)
    assert cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES == 100 and cfg.SOLVER.OPTIMIZER == "ADAMW"


def test_deeplabs_keys_may_be_added_first_or_last():
    first, last = get_cfg(), get_cfg()
    add_deeplab_config(first)
    add_maskformer2_config(first)
    add_maskformer2_config(last)
    add_deeplab_config(last)
    assert first == last


@pytest.mark.parametrize("file", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_our_files_give_the_same_values_in_both_hosts(file, differing_keys):
    cfg = load_config(file)
    assert not differing_keys(file) - UNREAD.get(kind(file, cfg), set())
    ours = flatten(cfg)
    converted = flatten(host_config(cfg, file))
    del ours["MODEL.DEVICE"]
    assert {key: converted[key] for key in ours} == ours
