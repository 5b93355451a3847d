"""Activation checkpointing: a block's activations are recomputed in the backward pass instead of kept."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def checkpoint_activations(block: nn.Module, *inputs: Any) -> Any:
    """Return `block(*inputs)`; if gradients are enabled, its activations are recomputed in the backward pass.

    The recomputation uses the same random numbers (drop path, dropout), and batch norms count the batch once.
    """
    if not torch.is_grad_enabled():
        return block(*inputs)
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm) and module.training]
    if not norms:  # torch.compile does not accept a context function
        return checkpoint(block, *inputs, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _fixed_statistics(norms)

    return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def _fixed_statistics(norms: Sequence[nn.Module]) -> Iterator[None]:
    """Let batch norms update copies of their statistics, which are discarded."""
    buffers = [(norm, name, buffer) for norm in norms for name, buffer in norm.named_buffers()]
    for norm, name, buffer in buffers:
        setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, name, buffer in buffers:
            setattr(norm, name, buffer)
