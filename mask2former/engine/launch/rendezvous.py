"""Where several machines wait for each other, and the network they use.

Torch would wait too, but silently, and deaf to Ctrl-C.
"""

import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist

from mask2former.engine.errors import ProcessError

if sys.platform == "linux":
    import fcntl

PAUSE = 0.1  # seconds between two looks
SHOWN = 4  # machines that a message names
SIOCGIFADDR = 0x8915  # Linux: an interface's address


def meet(url: str, number: int, machines: int, timeout: float) -> dist.Store:
    """Wait until all `machines` have come to `url`, tcp://HOST:PORT of the first; this one has a `number`.

    The first one's port stays open as long as what is returned is kept.

    Raises:
        ProcessError: they did not come within `timeout` seconds.
        ValueError: `url` cannot be listened at.
    """
    print(f"waiting for the other machines at {url}", flush=True)  # noqa: T201  (before there is a log)
    host, _, port = url.removeprefix("tcp://").rpartition(":")
    end = time.monotonic() + timeout
    if number and not _until(lambda: _is_open(host, int(port)), end):
        raise ProcessError(f"waited {timeout:g} s (--timeout) for the first machine; nobody answers at {url}")
    store = _store(url, host, int(port), number == 0, timedelta(seconds=timeout))
    names = [f"machine {other}" for other in range(machines)]
    store.set(names[number], "1")
    if not _until(lambda: store.check(names), end):
        missing = [name for name in names if not store.check([name])]
        raise ProcessError(
            f"waited {timeout:g} s (--timeout) at {url}; missing: {', '.join(missing[:SHOWN])}"
        )
    return store


def _store(url: str, host: str, port: int, first: bool, timeout: timedelta) -> dist.Store:
    try:
        return dist.TCPStore(  # of several in one process, as torch makes another, all share the one port
            host, port, None, first, timeout, wait_for_workers=False, multi_tenant=True
        )
    except dist.DistError as error:
        raise ValueError(f"--dist-url {url} cannot be used: {str(error).splitlines()[0]}") from error


def _until(condition: Callable[[], bool], end: float) -> bool:
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(PAUSE)
    return True


def _is_open(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def choose_interface() -> None:
    """Let gloo use the network by which the processes meet, unless the user has said which."""
    if name := interface_towards(os.environ["MASTER_ADDR"]):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def interface_towards(host: str) -> str:
    """The network interface on the way to `host`; empty where that cannot be told.

    Gloo by itself takes that of the machine's own name, which on many is a loopback that others cannot reach.
    """
    if sys.platform != "linux":
        return ""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 1))  # sends nothing
        except OSError:  # no such host, or not in IPv4
            return ""
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has no address
                asked = struct.pack("256s", name.encode())
                if fcntl.ioctl(probe, SIOCGIFADDR, asked)[20:24] == socket.inet_aton(probe.getsockname()[0]):
                    return name
    return ""
