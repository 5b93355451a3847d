"""A place in which examples of the pages run without traces."""

import pytest

from mask2former.data import DatasetCatalog, MetadataCatalog


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Run in an empty folder, with catalogs that forget what an example registers."""
    monkeypatch.chdir(tmp_path)
    for catalog in (DatasetCatalog, MetadataCatalog):
        monkeypatch.setattr(catalog, "_entries", dict(catalog._entries))
