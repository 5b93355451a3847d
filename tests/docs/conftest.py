"""A place in which examples of the pages run without traces."""

import pytest
from catalogs import restored_catalogs

__all__ = ["restored_catalogs"]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Run in an empty folder."""
    monkeypatch.chdir(tmp_path)
