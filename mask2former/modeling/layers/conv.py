"""A convolution with its norm and activation, named `conv1.weight`, `conv1.norm.weight` as in checkpoints.

Shapes: `B` images, `C` channels, `H, W` the sides of a map.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


def init_c2_xavier(convolution: nn.Conv2d) -> None:
    """Initialize as Caffe2's XavierFill: uniform with a variance of 1 / fan-in; the bias is zero."""
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)


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
