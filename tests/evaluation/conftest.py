"""The small synthetic dataset that the metrics are tested on."""

from pathlib import Path

import pytest
from synthetic_evaluation import SyntheticDataset


@pytest.fixture
def dataset(tmp_path: Path, request: pytest.FixtureRequest) -> SyntheticDataset:
    """Return a dataset of three images; an indirect parameter gives other image ids."""
    return SyntheticDataset(tmp_path, getattr(request, "param", (5, 2, 11)))
