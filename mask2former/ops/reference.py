"""Multi-scale deformable attention in PyTorch alone: it works on every device, and compiled code matches it.

All is computed in the type of the points: float32, or float64 for float64 values.

Shapes: `B` images, `S` cells of all maps laid end to end, `Lq` queries, `L` levels, `P` points, `D` channels
of a head, `N` heads of all images (B heads), `H, W` the sides of a map.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Shapes = tuple[tuple[int, int], ...]
FAR = 4.0  # to grid_sample, whose maps end at 1: more than a cell outside, however few cells a map has


def why_unavailable() -> str | None:
    """Always None: this one works wherever torch does."""
    return None


def forward(
    value: Tensor, shapes: Shapes, points: Tensor, weights: Tensor, reference: Tensor | None
) -> Tensor:
    """The operator's output (B, Lq, heads * D) of value's type; the arguments are those of `operator.py`."""
    batch, _, heads, channels = value.shape
    queries = points.shape[1]
    attended = points.new_zeros(batch * heads, channels, queries)
    # Summing level by level never holds the samples of all levels at once.
    for level in _levels(value, shapes, points, _probabilities(weights, reference), reference):
        attended += (_sample(level) * level.weights).sum(-1)
    return attended.view(batch, heads * channels, queries).transpose(1, 2).to(value.dtype).contiguous()


def backward(
    grad: Tensor, value: Tensor, shapes: Shapes, points: Tensor, weights: Tensor, reference: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, points and weights, given that of the output (B, Lq, heads * D)."""
    batch, cells, heads, channels = value.shape
    queries = points.shape[1]
    grad_heads = grad.to(points.dtype).transpose(1, 2).reshape(batch * heads, channels, queries, 1)
    grad_value = points.new_zeros(batch, cells, heads, channels)
    grad_points, grad_weights = torch.zeros_like(points), torch.zeros_like(weights)
    probabilities = _probabilities(weights, reference)
    for level in _levels(value, shapes, points, probabilities, reference):
        of_weights = (_sample(level) * grad_heads).sum(1)  # (N, Lq, P)
        of_maps, of_grid = torch.ops.aten.grid_sampler_2d_backward(
            grad_heads * level.weights, level.maps, level.grid, 0, 0, False, (True, True)
        )  # bilinear, zeros outside, edges not at the outer cells' centers
        grad_value[:, level.cells] = of_maps.reshape(batch, heads, channels, -1).permute(0, 3, 1, 2)
        of_locations = 2 * of_grid.unflatten(0, (batch, heads)).transpose(1, 2)
        height, width = shapes[level.number] if reference is not None else (1, 1)
        grad_points[:, :, :, level.number, :, 0] = of_locations[..., 0] / width
        grad_points[:, :, :, level.number, :, 1] = of_locations[..., 1] / height
        grad_weights[:, :, :, level.number] = of_weights.unflatten(0, (batch, heads)).transpose(1, 2)
    if reference is not None:
        grad_weights = _softmax_backward(grad_weights, probabilities)
    return grad_value.to(value.dtype), grad_points, grad_weights


class _Level(NamedTuple):
    """What grid_sample is to do: maps (N, D, H, W), grid (N, Lq, P, 2), weights (N, 1, Lq, P)."""

    number: int
    cells: slice  # of the S
    maps: Tensor
    grid: Tensor
    weights: Tensor


def _levels(
    value: Tensor, shapes: Shapes, points: Tensor, probabilities: Tensor, reference: Tensor | None
) -> Iterator[_Level]:
    """The levels that have cells, one after the other."""
    stop = 0
    for index, (height, width) in enumerate(shapes):
        start, stop = stop, stop + height * width
        if start == stop:
            continue
        cells = value[:, start:stop].to(points.dtype)
        locations = points[:, :, :, index]
        if reference is not None:
            x, y = locations.unbind(-1)
            centers = reference[:, :, min(index, reference.shape[2] - 1), None, None]
            locations = centers + torch.stack((x / width, y / height), dim=-1)
        # Points that are far away or nowhere would give NaN weights, or integers that overflow.
        grid = (2 * locations - 1).nan_to_num(nan=FAR).clamp(-FAR, FAR)
        yield _Level(
            index,
            slice(start, stop),
            cells.permute(0, 2, 3, 1).flatten(0, 1).unflatten(-1, (height, width)),
            grid.transpose(1, 2).flatten(0, 1),
            probabilities[:, :, :, index].transpose(1, 2).flatten(0, 1).unsqueeze(1),
        )


def _sample(level: _Level) -> Tensor:
    """Values (N, D, Lq, P) at the level's points."""
    return F.grid_sample(level.maps, level.grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _probabilities(weights: Tensor, reference: Tensor | None) -> Tensor:
    """Attention weights (B, Lq, heads, L, P); in the fused form they come as logits."""
    return weights if reference is None else weights.flatten(3).softmax(-1).view_as(weights)


def _softmax_backward(grad: Tensor, probabilities: Tensor) -> Tensor:
    """The gradient of logits, given that of their softmax over L and P."""
    weighted = grad * probabilities
    return weighted - probabilities * weighted.sum((3, 4), keepdim=True)
