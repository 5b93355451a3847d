"""The synthetic datasets, each made and prepared once."""

from collections.abc import Callable
from pathlib import Path

import pytest
from dataset_cases import Case, roots
from tiny_runs import restored_log

__all__ = ["restored_log", "roots"]


@pytest.fixture
def root(case: Case, roots: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the case's dataset, which $DETECTRON2_DATASETS names during the test."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(roots(case.tree)))
    return roots(case.tree)
