"""The server of the page: on one address, without requests to others, and without files that outlive it."""

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from mask2former.options import MOST_MEGABYTES
from mask2former.web.visits import Visits

PATIENCE = 2  # seconds that open connections get when the server ends
ENVIRONMENT = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}


@contextmanager
def page_server(visits: Visits, model_name: str, *, megabytes: float = MOST_MEGABYTES) -> Iterator[Any]:
    """Yield a uvicorn server of the page, to be run with a socket of `listen`.

    Gradio writes uploads below a temporary folder, which is deleted at the end.
    """
    with tempfile.TemporaryDirectory(prefix="mask2former-web-") as folder:
        os.environ |= {**ENVIRONMENT, "GRADIO_TEMP_DIR": folder}  # before Gradio is imported
        gradio, fastapi, uvicorn = map(import_module, ("gradio", "fastapi", "uvicorn"))
        pages = import_module("mask2former.web.page")
        page = pages.build_page(visits, model_name)
        app = gradio.mount_gradio_app(
            fastapi.FastAPI(openapi_url=None),
            page,
            path="",
            theme=pages.THEME,
            css=pages.CSS,
            footer_links=[],
            run_history=False,  # it would keep images in the browser
            max_file_size=f"{megabytes}mb",
            show_error=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
        )
        # Gradio's `launch` sets it. Without it visitors could have any file of this machine opened.
        assert hasattr(page, "has_launched")
        page.has_launched = True
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=PATIENCE)
        yield uvicorn.Server(config)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address; port 0 is a free one.

    Raises:
        OSError: there is no such address, it is not of this machine, or the port is taken.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener
