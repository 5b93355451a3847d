"""Fixtures of the tests that run inside Detectron2: `make test-detectron2 PYTHON=…`. None of them skips."""

import pytest
import tiny_runs
from detectron2.config import get_cfg
from tiny_runs import CONFIG, restored_log, tiny_options, tiny_shapes

from mask2former import add_maskformer2_config

__all__ = ["restored_log", "tiny_shapes"]


@pytest.fixture
def host_cfg(tiny_shapes):
    """The tiny config as a script of Detectron2's makes it, with changes: `host_cfg(SOLVER__MAX_ITER=2)`."""

    def make(**changes):
        cfg = get_cfg()
        add_maskformer2_config(cfg)
        cfg.merge_from_file(str(CONFIG))
        cfg.merge_from_list(tiny_options(**changes))
        return cfg

    return make


@pytest.fixture
def our_cfg(tiny_shapes):
    """The same as a config of the standalone host."""
    return tiny_runs.tiny_config
