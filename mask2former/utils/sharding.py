"""Tensors and models that may be sharded over processes (torch's `fully_shard`).

torch's modules for sharding take as long to import as torch itself. They are imported where a tensor or model
is sharded: whoever sharded it has imported them already.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mask2former.utils.comm import is_main_process

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model without DDP's wrapper."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def is_sharded(model: nn.Module) -> bool:
    """Return True if this process holds only a shard of the weights."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(model, fsdp.FSDPModule)


def _is_sharded_tensor(value: Any) -> TypeGuard[DTensor]:
    tensor = sys.modules.get("torch.distributed.tensor")
    return tensor is not None and isinstance(value, tensor.DTensor)


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a tensor that may be sharded; every process must call it."""
    return tensor.full_tensor() if _is_sharded_tensor(tensor) else tensor


def local_part(tensor: Tensor) -> Tensor:
    """Return the values of a tensor that this process holds: all, unless it is sharded."""
    return tensor.to_local() if _is_sharded_tensor(tensor) else tensor


def gather_to_main(content: Any) -> Any:
    """Gather the sharded tensors in nested dicts to the CPU of rank 0; they become None in other processes.

    Every process must call it.
    """
    if isinstance(content, dict):
        return {key: gather_to_main(value) for key, value in content.items()}
    if not _is_sharded_tensor(content):
        return content
    full = content.full_tensor()
    return full.cpu() if is_main_process() else None


def shard_like(tensor: Tensor, like: Tensor | None) -> Tensor:
    """Return this process's shard of a full tensor if `like` is a sharded tensor of the same shape."""
    if not _is_sharded_tensor(like) or _is_sharded_tensor(tensor) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
