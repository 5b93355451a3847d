"""What existing scripts rely on, and the import of Detectron2 on request only."""

import subprocess
import sys

import pytest

import mask2former
from mask2former.data import DatasetCatalog

IMPORTS = ["import detectron2.config", "from mask2former import add_maskformer2_config"]
PROGRAMS = {
    f"{order}: extending Detectron2's config registers our model": (
        f"{'; '.join(imports)}; add_maskformer2_config(detectron2.config.get_cfg())\n"
        "from detectron2.modeling import META_ARCH_REGISTRY; assert 'MaskFormer' in META_ARCH_REGISTRY"
    )
    for order, imports in (("Detectron2 first", IMPORTS), ("ours first", IMPORTS[::-1]))
}
PROGRAMS |= {
    "Detectron2 is imported on request only": (
        "import sys, mask2former, mask2former.tools.train, mask2former.tools.predict\n"
        "cfg = mask2former.get_cfg(); mask2former.add_maskformer2_config(cfg)\n"
        "cfg.MODEL.DEVICE = 'cpu'; mask2former.build_model(cfg)\n"
        "assert not any(name.startswith(('detectron2', 'torchvision')) for name in sys.modules)"
    ),
    "the host can be imported twice": (
        "import importlib; from mask2former import detectron2_host\n"
        "importlib.reload(detectron2_host)\n"
        "from detectron2.data import MetadataCatalog\n"
        "assert MetadataCatalog.get('shapes_panoptic_val').thing_classes[0] == 'circle'"
    ),
    "another project's model of the same name is an error": (
        "from detectron2.modeling import META_ARCH_REGISTRY\n"
        "@META_ARCH_REGISTRY.register()\n"
        "class MaskFormer: pass\n"
        "for attempt in range(2):\n"
        "    try: from mask2former import detectron2_host\n"
        "    except ValueError as error: assert '__main__.MaskFormer' in str(error), error\n"
        "    else: raise SystemExit('no error')"
    ),
    "datasets that another project registered first are kept": (
        "from detectron2.data import DatasetCatalog, MetadataCatalog\n"
        "DatasetCatalog.register('ade20k_panoptic_val', lambda: ['theirs'])\n"
        "from mask2former import detectron2_host\n"
        "assert DatasetCatalog.get('ade20k_panoptic_val') == ['theirs']\n"
        "assert not hasattr(MetadataCatalog.get('ade20k_panoptic_val'), 'thing_classes')"
    ),
}


@pytest.mark.parametrize("behavior", PROGRAMS)
def test_importing_the_host(behavior):
    done = subprocess.run([sys.executable, "-c", PROGRAMS[behavior]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_scripts_can_subclass_our_mapper(host_cfg):
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
