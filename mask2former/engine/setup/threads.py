"""The threads that torch computes with on the CPU: how many, and how they wait for each other.

In libgomp, torch's OpenMP library, a thread that waits spins for milliseconds before it sleeps. On a free
machine that is fast: to wake a thread takes as long as an operation of a small model. On a busy one it is
slow: threads spin while the one that they wait for has no core, and two runs at once take ten times as long
as one. libgomp hardly spins while a process has more OpenMP threads than processors (GOMP_SPINCOUNT in GCC's
manual). So while the threads of this process often lack a core, an idle team of threads is kept beside them,
which makes their number exceed that of the processors. The same threads compute as before, so results stay
the same.
"""

import ctypes
import functools
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from mask2former.engine.setup.cores import affinity, thread_share
from mask2former.utils.messages import plural

logger = logging.getLogger(__name__)

WAIT_POLICIES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # environment variables that libgomp obeys
TASKS = Path("/proc/self/task")  # on Linux, a folder for each thread of this process
PERIOD = 0.5  # seconds from look to look
WAITED = 0.45  # of the time that threads wanted a core; alone, workers of the loader cause up to 0.3
WAITING = 0.2  # threads at a time; if fewer wait, the process is idle
SHORTEST, LONGEST = 2.0, 60.0  # seconds until spinning is tried again


@functools.cache
def share_processor() -> str:
    """Let torch compute on this process's share of the cores, once, and return how many threads, and why.

    The number is only ever reduced, and waiting is adapted as the module's docstring says. What the user has
    set in the environment stays.
    """
    threads = torch.get_num_threads()
    share = thread_share(threads, os.environ)
    if share.number < threads:
        threads = int(share.number)
        torch.set_num_threads(threads)
    if why_not_adapted(threads, os.environ) is None:
        # Together one more than processors; a team's first thread is not counted.
        idle = affinity() - threads + 2
        threading.Thread(target=_adapt_waiting, args=(idle,), name="waiting", daemon=True).start()
    return f"{plural(threads, 'thread')} ({share.reason})"


def why_not_adapted(threads: int, environ: Mapping[str, str]) -> str | None:
    """Return why `threads` threads always wait in the same way; None if they spin or sleep as it fits."""
    if chosen := [name for name in WAIT_POLICIES if name in environ]:
        return f"{chosen[0]} is set"
    if threads == 1:
        return "a single thread does not wait"
    if 2 * threads < affinity():  # they rarely lack a core, and the idle team would be large
        return f"{threads} threads have {affinity()} processors"
    if not any(TASKS.glob("*/schedstat")):
        return "this system does not tell how long threads wait for a core"
    return None if _libgomp() else "torch's OpenMP library is not libgomp"


def _adapt_waiting(idle: int) -> None:
    """Keep `idle` idle threads while the processor is busy; now and then, try without them."""
    pause, is_logged = SHORTEST, False
    while True:
        before = thread_times()
        time.sleep(PERIOD)
        if not is_contended(before, thread_times(), PERIOD):
            pause = SHORTEST
            continue
        if not is_logged:
            logger.debug("other programs use the processor: while they do, waiting threads sleep")
            is_logged = True
        with idle_team(idle):
            time.sleep(pause)
        pause = min(2 * pause, LONGEST)


def is_contended(before: tuple[float, float], after: tuple[float, float], seconds: float) -> bool:
    """Return True if threads often lacked a core between two results of `thread_times`."""
    ran, waited = (end - start for start, end in zip(before, after, strict=True))
    return waited > max(WAITED * (ran + waited), WAITING * seconds)


def thread_times(tasks: Path = TASKS) -> tuple[float, float]:
    """Return for how many seconds all threads of this process together have run, and waited for a core."""
    ran = waited = 0
    for file in tasks.glob("*/schedstat"):
        with suppress(OSError):  # the thread has ended
            nanoseconds = [int(word) for word in file.read_text().split()]
            ran, waited = ran + nanoseconds[0], waited + nanoseconds[1]
    return ran / 1e9, waited / 1e9


@contextmanager
def idle_team(threads: int) -> Iterator[None]:
    """Keep an OpenMP team of `threads` threads that sleep."""
    libgomp, done = _libgomp(), threading.Event()
    assert libgomp is not None

    def hold() -> None:
        libgomp.GOMP_parallel(libgomp.getppid, None, threads, 0)  # each calls a function that does nothing
        done.wait()  # the team lives as long as the thread that has started it

    first = threading.Thread(target=hold, name="idle team", daemon=True)
    first.start()
    try:
        yield
    finally:
        done.set()
        first.join()


@functools.cache
def _libgomp() -> ctypes.CDLL | None:
    """Return a library that has the functions of the libgomp that torch uses; None if it uses another."""
    file = Path(torch.__file__).parent / "lib/libtorch_cpu.so"
    if not file.exists():
        return None
    library = ctypes.CDLL(str(file))  # it is loaded already, and finds the functions of what it is linked to
    is_libgomp = hasattr(library, "GOMP_parallel") and not hasattr(library, "kmp_set_blocktime")
    return library if is_libgomp else None
