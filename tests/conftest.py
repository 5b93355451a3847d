"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def shared() -> Path:
    """The folder with the large shared samples; the test is skipped where it is not at hand."""
    root = os.environ.get("M2F_SHARED")
    if not root:
        pytest.skip("M2F_SHARED is not set")
    return Path(root)
