"""Process groups: collectives, the connection between ranks, and a shared record of what each rank is doing.

With a single process each collective is the identity. Every rank must call the same collectives in the same
order, whatever its images hold.
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

MAX_LISTED = 4  # processes that a message lists
POLL_SECONDS = 0.05
WARN_AT = 0.95  # of the timeout

_store: dist.Store | None = None  # shared by the ranks of this attempt
_launch_id = ""
_status: tuple[float, str] = (0.0, "")  # what this rank is doing, and since when
_disconnected = threading.Event()


def connect(backend: str, timeout: timedelta) -> None:
    """Join the process group described by the environment variables of torch's launchers.

    A collective that takes longer than `timeout` fails. Shortly before, each rank logs what all are doing,
    since NCCL then ends the process without an exception.

    Raises:
        TimeoutError: other ranks did not come; raised on rank 0, which names them.
        DistError: the store was not reached.
    """
    global _store, _launch_id, _disconnected
    shared, number, processes = next(dist.rendezvous("env://", timeout=timeout))
    shared = dist.PrefixStore("mask2former", shared)
    _launch_id = shared.compare_set("launch", "", uuid.uuid4().hex).decode()
    _store = dist.PrefixStore(_agree_on_attempt(shared, number, processes, timeout), shared)
    dist.init_process_group(backend, store=_store, rank=number, world_size=processes, timeout=timeout)
    set_status("starting")
    _disconnected = threading.Event()
    threading.Thread(target=_warn_when_late, args=(timeout.total_seconds(),), daemon=True).start()


def _agree_on_attempt(shared: dist.Store, number: int, processes: int, timeout: timedelta) -> str:
    """Return an id that only the processes of this attempt share.

    A launcher's store outlives a restart and keeps the keys of dead processes, and launchers of several
    machines count restarts differently. So each rank requests the id under a random key, and rank 0 answers
    until every rank has confirmed it.
    """
    if number:
        request = uuid.uuid4().hex
        shared.set(f"request {number}", request)
        attempt = shared.get(request).decode()
        shared.set(f"{attempt} {number}", "1")
        return attempt
    attempt, missing = uuid.uuid4().hex, set(range(1, processes))
    end = time.monotonic() + timeout.total_seconds()
    while missing := {other for other in missing if not shared.check([f"{attempt} {other}"])}:
        for other in missing:
            if shared.check([f"request {other}"]):
                shared.set(shared.get(f"request {other}").decode(), attempt)
        if time.monotonic() > end:
            raise TimeoutError(f"missing: {', '.join(map(str, sorted(missing)[:MAX_LISTED]))}")
        time.sleep(POLL_SECONDS)
    return attempt


def disconnect() -> None:
    """Leave the process group."""
    global _store
    _disconnected.set()
    _store = None
    dist.destroy_process_group()


def launch_id() -> str:
    """Return an id of this launch that restarts keep; empty with one process."""
    return _launch_id if is_distributed() else ""


def set_status(what: str) -> None:
    """Record what this rank is doing, for messages about late ranks."""
    global _status
    if _store is not None:
        _status = (time.time(), what)
        _store.set(f"status {rank()}", f"{_status[0]} {what}")


def others_status() -> str:
    """Return what the other ranks are doing, the longest at it first."""
    if _store is None:
        return ""
    found = []
    for number in set(range(world_size())) - {rank()}:
        since, what = _store.get(f"status {number}").decode().split(" ", maxsplit=1)
        found.append((float(since), number, what))
    now = time.time()
    return "; ".join(
        f"process {number}, for {now - since:.0f} s: {what}"
        for since, number, what in sorted(found)[:MAX_LISTED]
    )


def _warn_when_late(timeout: float) -> None:
    disconnected, warned = _disconnected, 0.0
    while not disconnected.wait(timeout / 100):
        since, what = _status
        if since == warned or time.time() - since < WARN_AT * timeout:
            continue
        warned = since
        with suppress(RuntimeError):  # the store is gone
            logger.warning(
                "process %d, for %.3g s of at most %g s (--timeout): %s. The others: %s",
                *(rank(), time.time() - since, timeout, what, others_status()),
            )


def report_failure() -> None:
    """Record that this rank cannot go on."""
    if _store is not None:
        _store.set("failure", "1")


def has_failure() -> bool:
    """Return True if a rank reported a failure or the store is gone."""
    try:
        return _store is not None and _store.check(["failure"])
    except RuntimeError:
        return True


def is_distributed() -> bool:
    """Return True if a process group is initialized."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return this process's rank."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if is_distributed() else 1


def is_main_process() -> bool:
    """Return True on rank 0, which writes files and prints."""
    return rank() == 0


def all_reduce_sum(value: Tensor) -> Tensor:
    """Return the sum of `value` over all ranks as a new tensor, without gradient."""
    total = value.detach().clone()
    if is_distributed():
        dist.all_reduce(total)
    return total


def all_reduce_any(flag: bool) -> bool:
    """Return True if `flag` is set on at least one rank."""
    device = "cuda" if is_distributed() and dist.get_backend() == "nccl" else "cpu"  # NCCL needs CUDA tensors
    return bool(all_reduce_sum(torch.tensor(int(flag), device=device)))


def gather_objects(item: Any) -> list[Any]:
    """Return the picklable items of all ranks in order on rank 0; an empty list elsewhere."""
    if not is_distributed():
        return [item]
    items = [None] * world_size() if is_main_process() else None
    dist.gather_object(item, items)
    return items or []


def all_gather_object(item: Any) -> list[Any]:
    """Return the picklable items of all ranks in order."""
    if not is_distributed():
        return [item]
    items: list[Any] = [None] * world_size()
    dist.all_gather_object(items, item)
    return items


def broadcast_object(item: Any) -> Any:
    """Return rank 0's picklable item on all ranks."""
    items = [item]
    if is_distributed():
        dist.broadcast_object_list(items)
    return items[0]


def barrier() -> None:
    """Wait for all ranks."""
    if is_distributed():
        dist.barrier()
