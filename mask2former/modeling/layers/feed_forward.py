"""Two linear layers with ReLU between them that keep only their input for the backward pass.

The hidden activations are four times as wide as the input, and in the pixel decoder a third of what a
training step keeps. Computed in chunks they never leave the cache; the backward pass recomputes them with one
more product.

Shapes: `N` rows, `C` channels of a row, `F` hidden channels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mask2former.modeling.layers.chunking import chunk_slices


def feed_forward(
    x: Tensor, linear1: nn.Linear, linear2: nn.Linear, dropout: nn.Dropout | None = None
) -> Tensor:
    """Return linear2(dropout(relu(linear1(x)))), (..., C) -> (..., C).

    On a CPU with gradients the hidden activations are recomputed, except under a compiler, autocast or
    dropout.
    """
    if dropout is not None and dropout.training and dropout.p:
        return linear2(dropout(F.relu(linear1(x), inplace=True)))
    if should_recompute(x):
        result: Tensor = _FeedForward.apply(x, linear1.weight, linear1.bias, linear2.weight, linear2.bias)
        return result
    return linear2(F.relu(linear1(x), inplace=True))


def should_recompute(x: Tensor) -> bool:
    """Return True if hidden activations are recomputed in the backward pass."""
    transformed = torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type)
    return x.device.type == "cpu" and torch.is_grad_enabled() and not transformed


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight1, bias1, weight2)
        rows = x.reshape(-1, x.shape[-1])
        out = rows.new_empty(len(rows), len(weight2))
        for chunk in chunk_slices(len(rows), len(weight1)):
            torch.addmm(bias2, _hidden(rows[chunk], weight1, bias1), weight2.T, out=out[chunk])
        return out.view(*x.shape[:-1], len(weight2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, weight1, bias1, weight2 = ctx.saved_tensors
        rows, grad_out = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        grad_rows = torch.empty_like(rows)
        grad_weight1, grad_bias1, grad_weight2 = map(torch.zeros_like, (weight1, bias1, weight2))
        for chunk in chunk_slices(len(rows), len(weight1)):
            hidden = _hidden(rows[chunk], weight1, bias1)
            grad_weight2.addmm_(grad_out[chunk].T, hidden)
            grad_hidden = torch.ops.aten.threshold_backward(grad_out[chunk] @ weight2, hidden, 0)
            grad_weight1.addmm_(grad_hidden.T, rows[chunk])
            grad_bias1 += grad_hidden.sum(0)
            torch.mm(grad_hidden, weight1, out=grad_rows[chunk])
        return grad_rows.view_as(x), grad_weight1, grad_bias1, grad_weight2, grad_out.sum(0)


def _hidden(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the hidden activations (N, F) of rows (N, C)."""
    return torch.addmm(bias, rows, weight.T).relu_()
