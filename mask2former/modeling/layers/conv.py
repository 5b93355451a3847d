"""A convolution with its norm and activation, named `conv1.weight`, `conv1.norm.weight` as in checkpoints.

Shapes: `B` images, `C` channels, `H, W` the sides of a map.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mask2former.modeling.layers.norm import get_norm

Convolution = TypeVar("Convolution", bound=nn.Conv2d)


def init_c2_xavier(convolution: Convolution) -> Convolution:
    """Initialize as Caffe2's XavierFill: uniform with a variance of 1 / fan-in; the bias is zero."""
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return convolution


def memory_format(x: Tensor) -> torch.memory_format:
    """Return the memory format of a map (B, C, H, W): channels last, or else contiguous."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


class ConvNorm(nn.Conv2d):
    """nn.Conv2d, then `norm` and `activation` if given: (B, C_in, H, W) -> (B, C_out, H', W')."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
        **convolution: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, **convolution)
        self.norm = norm
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)


def same_size_conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    norm: str,
    *,
    activation: Callable[[Tensor], Tensor] | None = None,
) -> ConvNorm:
    """Return a convolution that keeps the size of a map, with a norm by its config name; "" gives it a bias.

    Raises:
        ValueError: as `get_norm`.
    """
    convolution = ConvNorm(
        in_channels,
        out_channels,
        kernel_size,
        padding=kernel_size // 2,
        bias=norm == "",
        norm=get_norm(norm, out_channels),
        activation=activation,
    )
    return init_c2_xavier(convolution)
