"""A real web server for tests of downloads."""

import http.server
import threading
from collections import Counter

import pytest


@pytest.fixture
def web(tmp_path, monkeypatch):
    """Serve the folder tmp_path/web and count requests; the cache for downloads is tmp_path/cache."""
    folder = tmp_path / "web"
    folder.mkdir()
    requests = Counter()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def do_GET(self):
            requests[self.path] += 1
            super().do_GET()

        def log_message(self, *_):
            pass

    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}/", requests
    server.shutdown()
    thread.join()
    server.server_close()
