"""What tests of training share: synthetic images, quick commands, restored log and catalogs."""

import pytest
from process_runs import Server
from tiny_runs import restored_catalogs, restored_log, tiny_shapes

__all__ = ["restored_catalogs", "restored_log", "tiny_shapes"]


@pytest.fixture(scope="module")
def server(tiny_shapes, tmp_path_factory):
    """Starts training commands; see `process_runs`."""
    server = Server(tmp_path_factory.mktemp("logs"))
    yield server
    assert not server.stop()
