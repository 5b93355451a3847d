"""Fixtures of the tests that run inside Detectron2: `make test-detectron2 PYTHON=...`. None of them skips."""

import pytest
import tiny_runs
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.projects.deeplab import add_deeplab_config
from tiny_runs import CONFIG, restored_catalogs, restored_log, tiny_options, tiny_shapes

from mask2former import add_maskformer2_config
from mask2former.config import load_config
from mask2former.config.yaml_files import flatten

__all__ = ["restored_catalogs", "restored_log", "tiny_shapes"]


@pytest.fixture(autouse=True)
def restored_host_catalogs(monkeypatch):
    for catalog in (DatasetCatalog, MetadataCatalog):
        monkeypatch.setattr(catalog, "data", dict(catalog.data))


@pytest.fixture
def host_cfg(tiny_shapes):
    """Return a function that makes the tiny config in Detectron2: `host_cfg(SOLVER__MAX_ITER=2)`."""

    def make(**changes):
        cfg = get_cfg()
        add_maskformer2_config(cfg)
        cfg.merge_from_file(str(CONFIG))
        cfg.merge_from_list(tiny_options(**changes))
        return cfg

    return make


@pytest.fixture
def our_cfg(tiny_shapes):
    """Return a function that makes the same config for the standalone host."""
    return tiny_runs.tiny_config


@pytest.fixture(scope="session")
def differing_keys():
    """Return a function that compares a file read by Detectron2 and by us; the device may differ."""

    def compare(file):
        cfg, ours = get_cfg(), flatten(load_config(file))
        add_deeplab_config(cfg)
        add_maskformer2_config(cfg)
        cfg.merge_from_file(str(file))
        theirs = flatten(cfg)
        del ours["MODEL.DEVICE"]
        return {key for key, value in ours.items() if as_list(theirs[key]) != as_list(value)}

    return compare


def as_list(value):
    return list(value) if isinstance(value, tuple) else value
