"""The few collectives the project needs; with a single process each is the identity.

Every process must make the same calls in the same order, whatever its images hold.
"""

from typing import Any

import torch.distributed as dist
from torch import Tensor


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


def barrier() -> None:
    """Wait for all processes."""
    if is_distributed():
        dist.barrier()
