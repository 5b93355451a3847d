"""A fixture that removes the datasets that a test registers."""

import pytest

from mask2former.data import DatasetCatalog, MetadataCatalog


@pytest.fixture(autouse=True)
def restored_catalogs():
    before = [(catalog, catalog.list()) for catalog in (DatasetCatalog, MetadataCatalog)]
    yield
    for catalog, names in before:
        for name in set(catalog.list()) - set(names):
            catalog.remove(name)
