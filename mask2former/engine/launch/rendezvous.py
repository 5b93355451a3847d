"""Rendezvous of several machines, and the network interface that gloo uses between them.

Torch's launcher waits too, but without a message, and Ctrl-C does not end it.
"""

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

POLL_SECONDS = 0.1
MAX_LISTED = 4  # machines that a message lists
SIOCGIFADDR = 0x8915  # Linux: get the address of an interface


def wait_for_machines(url: str, number: int, machines: int, timeout: float) -> dist.Store:
    """Wait until all `machines`, of which this is the `number`-th, are at tcp://HOST:PORT of the first one.

    The port stays open on the first machine as long as the returned store is kept.

    Raises:
        ProcessError: machines are missing after `timeout` seconds.
        ValueError: the first machine cannot listen at `url`.
    """
    # Before there is a log
    print(f"waiting for the other machines at {url}", file=sys.stderr, flush=True)  # noqa: T201
    host, _, port = url.removeprefix("tcp://").rpartition(":")
    end = time.monotonic() + timeout
    if number and not _poll(lambda: _is_open(host, int(port)), end):
        raise ProcessError(f"waited {timeout:g} s (--timeout) for the first machine; nobody answers at {url}")
    try:  # torch's launcher opens another store at this port: multi_tenant lets them share it
        store = dist.TCPStore(
            host,
            int(port),
            None,
            not number,
            timedelta(seconds=timeout),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except dist.DistError as error:
        raise ValueError(f"--dist-url {url} cannot be used: {str(error).splitlines()[0]}") from error
    names = [f"machine {other}" for other in range(machines)]
    store.set(names[number], "1")
    if not _poll(lambda: store.check(names), end):
        missing = [name for name in names if not store.check([name])]
        listed = ", ".join(missing[:MAX_LISTED])
        raise ProcessError(f"waited {timeout:g} s (--timeout) at {url}; missing: {listed}")
    return store


def _poll(condition: Callable[[], bool], end: float) -> bool:
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _is_open(host: str, port: int) -> bool:
    with suppress(OSError):
        socket.create_connection((host, port), timeout=1).close()
        return True
    return False


def interface_towards(host: str) -> str:
    """Return the name of the network interface that leads to `host`; empty if unknown.

    By default gloo takes the interface of the host name, often a loopback that other machines cannot reach.
    """
    if sys.platform != "linux":
        return ""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 1))  # sends nothing
        except OSError:  # no such host, or not in IPv4
            return ""
        own = socket.inet_aton(probe.getsockname()[0])
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # the interface has no address
                if fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()))[20:24] == own:
                    return name
    return ""
