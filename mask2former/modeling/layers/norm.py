"""Normalization layers by their config names.

Shapes: `B` images, `C` channels, `H, W` the sides of a map, `n` values of one channel over all processes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from mask2former.utils.comm import all_reduce_sum, world_size

GROUPS = 32  # of GroupNorm in the published models


class FrozenBatchNorm2d(nn.Module):
    """Batch norm with constant statistics, scale and shift, also in training; all are buffers."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels) - eps)  # the identity, exactly

    @classmethod
    def of(cls, norm: _BatchNorm) -> FrozenBatchNorm2d:
        """Freeze a batch norm as it is in evaluation."""
        frozen = cls(norm.num_features, norm.eps)
        state = norm.state_dict()
        frozen.load_state_dict({name: state[name] for name in frozen.state_dict()})
        return frozen.to(norm.weight.device, norm.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        # batch_norm would keep x for the gradients of scale and shift, which are constants here.
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return torch.addcmul(_per_channel(shift, x), x, _per_channel(scale, x))

    def extra_repr(self) -> str:
        """Return channels and eps, for print(model)."""
        return f"{len(self.weight)}, eps={self.eps}"


class SyncBatchNorm(nn.BatchNorm2d):
    """torch's SyncBatchNorm, which reduces over GPUs alone, extended to CPU processes.

    With one process it is plain batch norm. It is not a subclass of torch's: that one refuses CPU tensors in
    any process group, and DistributedDataParallel refuses CPU models that contain one.
    """

    process_group = None  # all processes
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return nn.SyncBatchNorm.forward(cast(nn.SyncBatchNorm, self), x)
        alone = not self.training or world_size() == 1
        return super().forward(x) if alone else self._normalize_over_processes(x)

    def _normalize_over_processes(self, x: Tensor) -> Tensor:
        n = all_reduce_sum(x.new_tensor(x.numel() / x.shape[1], dtype=torch.float32))
        mean = _Sum.apply(x.float().sum((0, 2, 3))) / n
        centered = x - _per_channel(mean, x)
        variance = _Sum.apply(centered.float().square().sum((0, 2, 3))) / n
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return torch.addcmul(_per_channel(self.bias, x), centered, _per_channel(scale, x))


class _Sum(torch.autograd.Function):
    """Differentiable `all_reduce_sum`: every process's loss depends on the sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return all_reduce_sum(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return all_reduce_sum(gradient)


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.to(x.dtype)[:, None, None]


def _group_norm(channels: int) -> nn.GroupNorm:
    if channels % GROUPS:
        raise ValueError(f"norm 'GN' has {GROUPS} groups, which do not divide {channels} channels")
    return nn.GroupNorm(GROUPS, channels)


NORMS: dict[str, Callable[[int], nn.Module | None]] = {
    "": lambda channels: None,
    "BN": nn.BatchNorm2d,
    "FrozenBN": FrozenBatchNorm2d,
    "SyncBN": SyncBatchNorm,
    "GN": _group_norm,
}


def get_norm(name: str, channels: int) -> nn.Module | None:
    """Return the norm called `name` in configs, or None for the empty name.

    Raises:
        ValueError: an unknown name, or channels that cannot be split into groups.
    """
    if name not in NORMS:
        raise ValueError(f"norm '{name}' is unknown; known are {', '.join(repr(known) for known in NORMS)}")
    return NORMS[name](channels)


def freeze(module: nn.Module) -> None:
    """Stop the training of all parameters of `module`, and freeze its batch norms, in place."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, _BatchNorm):
                setattr(parent, name, FrozenBatchNorm2d.of(child))
