"""The names that existing scripts import, and that nothing imports Detectron2 before it is asked for."""

import subprocess
import sys

import pytest

import mask2former
from mask2former import detectron2_host
from mask2former.data import DatasetCatalog

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
        "import sys, mask2former, mask2former.tools.train, mask2former.tools.predict\n"
        "cfg = mask2former.get_cfg(); mask2former.add_maskformer2_config(cfg)\n"
        "cfg.MODEL.DEVICE = 'cpu'; mask2former.build_model(cfg)\n"
        "assert not any(name.startswith(('detectron2', 'torchvision')) for name in sys.modules)"
    )


def test_scripts_extend_our_mapper(host_cfg):
    class Mine(mask2former.MaskFormerPanopticDatasetMapper):
        def __init__(self, cfg, is_train=True):
            super().__init__(cfg, is_train=is_train)
            self.seen = []

        def __call__(self, record):
            self.seen.append(record["image_id"])
            return super().__call__(record)

    record = DatasetCatalog.get("shapes_panoptic_train")[0]
    mapper = Mine(host_cfg(), is_train=False)
    assert "instances" not in mapper(record) and mapper.seen == [record["image_id"]]
    assert "instances" in Mine(host_cfg())(record)


def test_joining_twice_is_joining_once():
    run(
        "import importlib; from mask2former import detectron2_host\n"
        "importlib.reload(detectron2_host)\n"
        "from detectron2.data import MetadataCatalog\n"
        "assert MetadataCatalog.get('shapes_panoptic_val').thing_classes[0] == 'circle'"
    )


def test_another_projects_model_of_the_same_name_is_named():
    run(
        "from detectron2.modeling import META_ARCH_REGISTRY\n"
        "@META_ARCH_REGISTRY.register()\n"
        "class MaskFormer: pass\n"
        "for attempt in range(2):\n"
        "    try: from mask2former import detectron2_host\n"
        "    except ValueError as error: assert '__main__.MaskFormer' in str(error), error\n"
        "    else: raise SystemExit('both were taken')"
    )


def test_datasets_that_another_project_registered_before_stay_its_own():
    run(
        "from detectron2.data import DatasetCatalog, MetadataCatalog\n"
        "DatasetCatalog.register('ade20k_panoptic_val', lambda: ['theirs'])\n"
        "from mask2former import detectron2_host\n"
        "assert DatasetCatalog.get('ade20k_panoptic_val') == ['theirs']\n"
        "assert not hasattr(MetadataCatalog.get('ade20k_panoptic_val'), 'thing_classes')"
    )


def run(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
