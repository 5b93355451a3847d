"""What the public project registers is in Detectron2's catalogs by ours too, with the same facts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from mask2former.detectron2_host.catalogs import MirroredMetadata

PUBLIC = Path(os.environ["MASK2FORMER_PUBLIC"])
FACTS = [
    *("evaluator_type", "ignore_label", "label_divisor", "stuff_classes"),
    *("image_root", "sem_seg_root", "panoptic_root", "panoptic_json"),
    *("thing_dataset_id_to_contiguous_id", "stuff_dataset_id_to_contiguous_id"),
]
# Its operator is not compiled, and not needed to register datasets.
PROGRAM = """
import json, sys, types
sys.modules["MultiScaleDeformableAttention"] = types.ModuleType("MultiScaleDeformableAttention")
import mask2former
from detectron2.data import DatasetCatalog, MetadataCatalog
facts = {name: MetadataCatalog.get(name).as_dict() for name in DatasetCatalog.list()}
chosen = {name: {key: found.get(key) for key in sys.argv[1:]} for name, found in facts.items()}
print("FACTS" + json.dumps(chosen))
"""


@pytest.fixture(scope="module")
def published():
    """Name -> its facts."""
    environment = {**os.environ, "PYTHONPATH": str(PUBLIC), "DETECTRON2_DATASETS": "/data"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *FACTS], capture_output=True, text=True, env=environment, cwd=PUBLIC
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.partition("FACTS")[2])


def plain(value):
    """As it comes out of JSON, names without the space that one of them ends with."""
    return [v.strip() for v in value] if isinstance(value, list) else json.loads(json.dumps(value))


def test_every_dataset_is_there_with_its_facts(published, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/data")
    assert published.keys() <= set(DatasetCatalog.list())
    registered = {name: MetadataCatalog.get(name) for name in published}
    by_us = {name: ours for name, ours in registered.items() if isinstance(ours, MirroredMetadata)}
    assert {"ade20k_full_sem_seg_val", "mapillary_vistas_panoptic_train"} <= by_us.keys()
    for name, metadata in by_us.items():
        facts, ours = published[name], metadata.as_dict()
        shared = [key for key in FACTS if facts[key] is not None and key in ours]
        assert {key: plain(ours[key]) for key in shared} == {key: plain(facts[key]) for key in shared}, name
