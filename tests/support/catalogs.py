"""A fixture that removes the datasets that a test registers."""

import pytest

from mask2former.data import DatasetCatalog, MetadataCatalog


@pytest.fixture(autouse=True)
def restored_catalogs(monkeypatch):
    for catalog in (DatasetCatalog, MetadataCatalog):
        monkeypatch.setattr(catalog, "_entries", dict(catalog._entries))
