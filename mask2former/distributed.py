"""The few collectives the project needs; with a single process each is the identity.

Every process must make the same calls in the same order, whatever its images hold. What each is at is noted
where all can read it, so that who waits in vain can tell for whom.
"""

import os
import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor

SHOWN = 4  # processes of which a message tells what they are at
RESTARTS = "TORCHELASTIC_RESTART_COUNT"  # set by torch's launchers

_store: dist.Store | None = None


def connect(backend: str, timeout: timedelta) -> None:
    """Join the processes that the environment variables of torch's launchers tell of.

    A collective that takes longer than `timeout` fails.
    """
    global _store
    common, number, processes = next(dist.rendezvous("env://", timeout=timeout))
    attempt = os.environ.get(RESTARTS, "0")  # a store that outlives a restart holds what died in it
    _store = dist.PrefixStore(f"attempt {attempt}", common)
    _store.set(f"note {number}", f"{time.time()} starting")
    dist.init_process_group(backend, store=_store, rank=number, world_size=processes, timeout=timeout)


def disconnect() -> None:
    """Leave the others."""
    global _store
    _store = None
    dist.destroy_process_group()


def note(what: str) -> None:
    """Tell the others what this process is at from now on."""
    if _store is not None:
        _store.set(f"note {rank()}", f"{time.time()} {what}")


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


def sum_over_processes(value: Tensor) -> Tensor:
    """A fresh tensor: the sum of `value` over all processes. No gradient passes."""
    total = value.detach().clone()
    if is_distributed():
        dist.all_reduce(total)
    return total


def gather_objects(item: Any) -> list[Any]:
    """The picklable items of all processes in order of rank, on the main process; an empty list elsewhere."""
    if not is_distributed():
        return [item]
    items = [None] * world_size() if is_main_process() else None
    dist.gather_object(item, items)
    return items or []


def of_main_process(item: Any) -> Any:
    """The main process's picklable item, in all processes."""
    items = [item]
    if is_distributed():
        dist.broadcast_object_list(items)
    return items[0]


def barrier() -> None:
    """Wait for all processes."""
    if is_distributed():
        dist.barrier()
