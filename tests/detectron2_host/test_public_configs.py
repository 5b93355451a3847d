"""The public project's YAML files say the same in both hosts; $MASK2FORMER_PUBLIC names a checkout of it."""

import os
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.projects.deeplab import add_deeplab_config

from mask2former import add_maskformer2_config
from mask2former.config import load_config
from mask2former.config.yaml_files import flatten

PUBLIC = Path(os.environ["MASK2FORMER_PUBLIC"]) / "configs"
PUBLISHED = [path for path in sorted(PUBLIC.rglob("*.yaml")) if "youtubevis" not in str(path)]
DIFFERENT_DEFAULTS = {  # set by every file that describes a model
    "MODEL.META_ARCHITECTURE",
    "MODEL.RESNETS.OUT_FEATURES",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES",
    "MODEL.SEM_SEG_HEAD.NAME",
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME",
}


def as_lists(value):
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda path: str(path.relative_to(PUBLIC)))
def test_each_published_file_is_read_by_detectron2_as_by_us(file):
    cfg, ours = get_cfg(), flatten(load_config(file))
    add_deeplab_config(cfg)
    add_maskformer2_config(cfg)
    cfg.merge_from_file(str(file))
    theirs = flatten(cfg)
    differing = {key for key in ours if as_lists(theirs[key]) != as_lists(ours[key])}
    bases = DIFFERENT_DEFAULTS if file.name.startswith("Base-") else set()
    assert differing <= {"MODEL.DEVICE"} | bases, differing
