"""We read the public project's YAML files and register its datasets with the same values.

$MASK2FORMER_PUBLIC is its checkout.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from mask2former.detectron2_host.catalogs import MirroredMetadata

PUBLIC = Path(os.environ["MASK2FORMER_PUBLIC"])
CONFIGS = [path for path in sorted(PUBLIC.glob("configs/**/*.yaml")) if "youtubevis" not in str(path)]
DIFFERENT_DEFAULTS = {  # set by every file that describes a model
    "MODEL.META_ARCHITECTURE",
    "MODEL.RESNETS.OUT_FEATURES",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES",
    "MODEL.SEM_SEG_HEAD.NAME",
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME",
}
FACTS = [
    *("evaluator_type", "ignore_label", "label_divisor", "stuff_classes"),
    *("image_root", "sem_seg_root", "panoptic_root", "panoptic_json"),
    *("thing_dataset_id_to_contiguous_id", "stuff_dataset_id_to_contiguous_id"),
]
# Registering datasets does not need the compiled operator.
PROGRAM = """
import json, sys, types
sys.modules["MultiScaleDeformableAttention"] = types.ModuleType("MultiScaleDeformableAttention")
import mask2former
from detectron2.data import DatasetCatalog, MetadataCatalog
facts = {name: MetadataCatalog.get(name).as_dict() for name in DatasetCatalog.list()}
chosen = {name: {key: found.get(key) for key in sys.argv[1:]} for name, found in facts.items()}
print("FACTS" + json.dumps(chosen))
"""


@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: str(path.relative_to(PUBLIC / "configs")))
def test_published_files_give_the_same_values_in_both_hosts(file, differing_keys):
    assert differing_keys(file) <= (DIFFERENT_DEFAULTS if file.name.startswith("Base-") else set())


@pytest.fixture(scope="module")
def published():
    """Return dataset -> metadata, as the public project registers them."""
    environment = {**os.environ, "PYTHONPATH": str(PUBLIC), "DETECTRON2_DATASETS": "/data"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *FACTS], capture_output=True, text=True, env=environment, cwd=PUBLIC
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.partition("FACTS")[2])


def plain(value):
    """Return a value as JSON gives it; names without the space at the end of one of them."""
    return [v.strip() for v in value] if isinstance(value, list) else json.loads(json.dumps(value))


def test_every_dataset_is_registered_with_the_same_metadata(published, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/data")
    assert published.keys() <= set(DatasetCatalog.list())
    registered = {name: MetadataCatalog.get(name) for name in published}
    by_us = {name: ours for name, ours in registered.items() if isinstance(ours, MirroredMetadata)}
    assert {"ade20k_full_sem_seg_val", "mapillary_vistas_panoptic_train"} <= by_us.keys()
    for name, metadata in by_us.items():
        facts, ours = published[name], metadata.as_dict()
        shared = [key for key in FACTS if facts[key] is not None and key in ours]
        assert {key: plain(ours[key]) for key in shared} == {key: plain(facts[key]) for key in shared}, name
