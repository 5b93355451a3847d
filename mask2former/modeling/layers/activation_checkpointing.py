"""Activation checkpointing: what a block computes inside is computed again in the backward pass, not kept."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recompute(block: nn.Module, *inputs: Any) -> Any:
    """`block(*inputs)`, its activations recomputed in backward where gradients are wanted.

    Random numbers (drop path, dropout) repeat, and batch norms count the batch once.
    """
    if not torch.is_grad_enabled():
        return block(*inputs)
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm) and module.training]
    if not norms:  # torch.compile takes no context
        return checkpoint(block, *inputs, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _fixed_statistics(norms)

    return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def _fixed_statistics(norms: Sequence[nn.Module]) -> Iterator[None]:
    """Batch norms update copies of their statistics meanwhile, which are thrown away."""
    buffers = [(norm, name, buffer) for norm in norms for name, buffer in norm.named_buffers()]
    for norm, name, buffer in buffers:
        setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, name, buffer in buffers:
            setattr(norm, name, buffer)
