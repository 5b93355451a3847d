"""A tiny model, which the tests of the page share."""

import pytest
from tiny_checkpoint import save_tiny_checkpoint

from mask2former.predictor import Predictor


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("web") / "model_final.pth")


@pytest.fixture(scope="session")
def predictor(checkpoint):
    return Predictor(checkpoint)
