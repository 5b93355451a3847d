"""Two linear layers with ReLU between them, which keep their input alone for the backward pass.

What lies between is four times as wide as the input, and in the pixel decoder a third of what a training step
has to keep. Computed piece by piece it never leaves the cache, and one product more brings it back.

Shapes: `N` rows, `C` channels of a row, `F` channels between the layers.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mask2former.modeling.layers.chunking import pieces


def feed_forward(x: Tensor, linear1: nn.Linear, linear2: nn.Linear) -> Tensor:
    """linear2(relu(linear1(x))), (..., C) -> (..., C).

    On a CPU with gradients what lies between is not kept, unless a compiler or autocast has a say in it.
    """
    if _recomputing_pays(x):
        result: Tensor = _FeedForward.apply(x, linear1.weight, linear1.bias, linear2.weight, linear2.bias)
        return result
    return linear2(F.relu(linear1(x), inplace=True))


def _recomputing_pays(x: Tensor) -> bool:
    watched = torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type)
    return x.device.type == "cpu" and torch.is_grad_enabled() and not watched


class _FeedForward(torch.autograd.Function):
    """Both passes in pieces of rows; the backward pass computes the hidden rows of a piece again."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight1, bias1, weight2)
        rows = x.reshape(-1, x.shape[-1])
        out = rows.new_empty(len(rows), len(weight2))
        for piece in pieces(len(rows), len(weight1)):
            torch.addmm(bias2, _hidden(rows[piece], weight1, bias1), weight2.T, out=out[piece])
        return out.view(*x.shape[:-1], len(weight2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, weight1, bias1, weight2 = ctx.saved_tensors
        rows, of_out = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        of_rows = torch.empty_like(rows)
        of_weight1, of_bias1, of_weight2 = map(torch.zeros_like, (weight1, bias1, weight2))
        for piece in pieces(len(rows), len(weight1)):
            hidden = _hidden(rows[piece], weight1, bias1)
            of_weight2.addmm_(of_out[piece].T, hidden)
            of_hidden = torch.ops.aten.threshold_backward(of_out[piece] @ weight2, hidden, 0)
            of_weight1.addmm_(of_hidden.T, rows[piece])
            of_bias1 += of_hidden.sum(0)
            torch.mm(of_hidden, weight1, out=of_rows[piece])
        return of_rows.view_as(x), of_weight1, of_bias1, of_weight2, of_out.sum(0)


def _hidden(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Rows (N, C) after the first layer, rectified: (N, F)."""
    return torch.addmm(bias, rows, weight.T).relu_()
