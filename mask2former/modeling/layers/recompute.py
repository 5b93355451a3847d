"""Activation checkpointing: a block's inner activations are computed again in the backward pass instead of kept."""

from collections.abc import Iterator
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

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _fixed_statistics(block)

    return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def _fixed_statistics(block: nn.Module) -> Iterator[None]:
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False  # in training: still the batch's statistics, but no update
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
