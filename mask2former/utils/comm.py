"""The few collectives the project needs; with a single process each is the identity.

Every process must make the same calls in the same order, whatever its images hold. What each is at is noted
where all can read it, so that who waits in vain can tell for whom.
"""

import logging
import threading
import time
import uuid
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

logger = logging.getLogger(__name__)

SHOWN = 4  # processes of which a message tells what they are at
PAUSE = 0.05  # seconds between two looks
WARNED = 0.95  # of the timeout

_store: dist.Store | None = None  # of this attempt
_launch = ""
_own: tuple[float, str] = (0.0, "")  # since when this process has been at what
_ended = threading.Event()


def connect(backend: str, timeout: timedelta) -> None:
    """Join the processes that the environment variables of torch's launchers tell of.

    A collective that takes longer than `timeout` fails. Shortly before, whatever the backend does then, this
    process logs what all are at.

    Raises:
        TimeoutError: the main process says who did not come.
        DistError: the others were not found.
    """
    global _store, _launch, _ended
    common, number, processes = next(dist.rendezvous("env://", timeout=timeout))
    common = dist.PrefixStore("mask2former", common)
    _launch = common.compare_set("launch", "", uuid.uuid4().hex).decode()
    _store = dist.PrefixStore(_agree_on_attempt(common, number, processes, timeout), common)
    _write_note(number, "starting")
    dist.init_process_group(backend, store=_store, rank=number, world_size=processes, timeout=timeout)
    _ended = threading.Event()
    threading.Thread(target=_watch, args=(_ended, timeout.total_seconds()), daemon=True).start()


def _agree_on_attempt(common: dist.Store, number: int, processes: int, timeout: timedelta) -> str:
    """A name that the processes of this attempt share, and those of one before do not.

    A launcher's store outlives a restart, and what died left its words there. Nor do launchers of several
    machines count restarts alike. So each process asks under a name of its own, and the main process answers
    until all have read what it made up.
    """
    if number:
        asked = uuid.uuid4().hex
        common.set(f"asked by {number}", asked)
        attempt = common.get(asked).decode()
        common.set(f"{attempt} {number}", "1")
        return attempt
    attempt, missing = uuid.uuid4().hex, set(range(1, processes))
    end = time.monotonic() + timeout.total_seconds()
    while missing := {other for other in missing if not common.check([f"{attempt} {other}"])}:
        for other in missing:
            if common.check([f"asked by {other}"]):
                common.set(common.get(f"asked by {other}").decode(), attempt)
        if time.monotonic() > end:
            raise TimeoutError(f"missing: {', '.join(map(str, sorted(missing)[:SHOWN]))}")
        time.sleep(PAUSE)
    return attempt


def launch_id() -> str:
    """The same while the launcher's store lasts, so in attempts after a failure; empty with one process."""
    return _launch if is_distributed() else ""


def disconnect() -> None:
    """Leave the others."""
    global _store
    _ended.set()
    _store = None
    dist.destroy_process_group()


def note(what: str) -> None:
    """Tell the others what this process is at from now on."""
    if _store is not None:
        _write_note(rank(), what)


def _write_note(number: int, what: str) -> None:
    global _own
    assert _store is not None
    _own = (time.time(), what)
    _store.set(f"note {number}", f"{_own[0]} {what}")


def _watch(ended: threading.Event, timeout: float) -> None:
    """Log once, for each note, that this process has been at it for nearly the timeout."""
    told = 0.0
    while not ended.wait(timeout / 100):
        begun, what = _own
        if begun != told and time.time() - begun > WARNED * timeout:
            told = begun
            with suppress(RuntimeError):  # the one that they meet at is gone
                logger.warning(
                    "process %d has been at one thing, or waits for others, for %.3g s of the %g s that "
                    "processes wait (--timeout): %s. The others: %s",
                    rank(), time.time() - begun, timeout, what, others_notes(),
                )  # fmt: skip


def note_failure() -> None:
    """Tell the others that this process cannot go on."""
    if _store is not None:
        _store.set("failure", "1")


def has_failure() -> bool:
    """Whether a process has told so, or the one that they meet at is gone."""
    try:
        return _store is not None and _store.check(["failure"])
    except RuntimeError:
        return True


def note_stop() -> None:
    """Tell the others that this process was told to stop."""
    if _store is not None:
        _store.set("stop", "1")


def has_stop() -> bool:
    """Whether a process has told so; each learns it at its own time."""
    return _store is not None and _store.check(["stop"])


def others_notes() -> str:
    """What the other processes are at, the one that has been there longest first."""
    if _store is None:
        return ""
    notes = []
    for number in set(range(world_size())) - {rank()}:
        begun, what = _store.get(f"note {number}").decode().split(" ", maxsplit=1)
        notes.append((float(begun), number, what))
    now = time.time()
    told = [
        f"process {number}, for {now - begun:.0f} s: {what}" for begun, number, what in sorted(notes)[:SHOWN]
    ]
    return "; ".join(told)


def is_distributed() -> bool:
    """Whether a process group is up."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if is_distributed() else 1


def is_main_process() -> bool:
    """Whether this process writes files and prints."""
    return rank() == 0


def all_reduce_sum(value: Tensor) -> Tensor:
    """A fresh tensor: the sum of `value` over all processes. No gradient passes."""
    total = value.detach().clone()
    if is_distributed():
        dist.all_reduce(total)
    return total


def all_reduce_any(fact: bool) -> bool:
    """Whether it is so in at least one process."""
    device = "cuda" if is_distributed() and dist.get_backend() == "nccl" else "cpu"  # NCCL knows no other
    return bool(all_reduce_sum(torch.tensor(int(fact), device=device)))


def gather_objects(item: Any) -> list[Any]:
    """The picklable items of all processes in order of rank, on the main process; an empty list elsewhere."""
    if not is_distributed():
        return [item]
    items = [None] * world_size() if is_main_process() else None
    dist.gather_object(item, items)
    return items or []


def all_gather_object(item: Any) -> list[Any]:
    """The picklable items of all processes in order of rank, in all processes."""
    if not is_distributed():
        return [item]
    items: list[Any] = [None] * world_size()
    dist.all_gather_object(items, item)
    return items


def broadcast_object(item: Any) -> Any:
    """The main process's picklable item, in all processes."""
    items = [item]
    if is_distributed():
        dist.broadcast_object_list(items)
    return items[0]


def barrier() -> None:
    """Wait for all processes."""
    if is_distributed():
        dist.barrier()
