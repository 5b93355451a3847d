"""The names that existing scripts import, and that nothing imports Detectron2 before it is asked for."""

import subprocess
import sys

import pytest

import mask2former
from mask2former import detectron2_host

NAMES = (
    "COCOInstanceNewBaselineDatasetMapper",
    "COCOPanopticNewBaselineDatasetMapper",
    "InstanceSegEvaluator",
    "MaskFormerInstanceDatasetMapper",
    "MaskFormerPanopticDatasetMapper",
    "MaskFormerSemanticDatasetMapper",
    "SemanticSegmentorWithTTA",
)


@pytest.mark.parametrize("name", NAMES)
def test_scripts_find_their_names(name):
    assert getattr(mask2former, name) is getattr(detectron2_host, name)


@pytest.mark.parametrize(
    "imports",
    [
        "import detectron2.config; from mask2former import add_maskformer2_config",
        "from mask2former import add_maskformer2_config; import detectron2.config",
    ],
    ids=["Detectron2 first", "ours first"],
)
def test_extending_its_config_brings_our_model(imports):
    run(
        f"{imports}; add_maskformer2_config(detectron2.config.get_cfg())\n"
        "from detectron2.modeling import META_ARCH_REGISTRY; assert 'MaskFormer' in META_ARCH_REGISTRY"
    )


def test_detectron2_is_not_imported_before_it_is_asked_for():
    run(
        "import sys, mask2former, mask2former.tools.train, mask2former.tools.demo\n"
        "cfg = mask2former.get_cfg(); mask2former.add_maskformer2_config(cfg)\n"
        "cfg.MODEL.DEVICE = 'cpu'; mask2former.build_model(cfg)\n"
        "assert not any(name.startswith(('detectron2', 'torchvision')) for name in sys.modules)"
    )


def run(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
