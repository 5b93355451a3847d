"""The synthetic datasets, each made and prepared once."""

from collections.abc import Callable
from pathlib import Path

import pytest
from dataset_cases import Case, prepared
from tiny_runs import restored_log

__all__ = ["restored_log"]


@pytest.fixture(scope="session")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from the name of a dataset to the folder that holds it."""
    made: dict[str, Path] = {}

    def root(tree: str) -> Path:
        if tree not in made:
            made[tree] = prepared(tree, tmp_path_factory.mktemp(tree))
        return made[tree]

    return root


@pytest.fixture
def root(case: Case, roots: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the case's dataset, which $DETECTRON2_DATASETS names during the test."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(roots(case.tree)))
    return roots(case.tree)
