"""Multi-scale deformable attention in plain PyTorch: the reference for compiled code, on every device.

Everything is computed in the type of the points: float32, or float64 for float64 values.

Shapes: `B` images, `S` cells of all maps together, `Lq` queries, `L` levels, `P` points, `D` channels
of a head, `N` heads of all images (B heads), `H, W` the sides of a map.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Shapes = tuple[tuple[int, int], ...]
FAR = 4.0  # in grid_sample's coordinates, where maps end at 1: more than a cell outside of any map


class AttentionInputs(NamedTuple):
    """The arguments of the operator; `operator.py` describes them."""

    value: Tensor
    shapes: Shapes
    points: Tensor
    weights: Tensor
    reference: Tensor | None = None


def why_unavailable() -> str | None:
    """Return None: this backend works wherever torch does."""
    return None


def forward(inputs: AttentionInputs) -> Tensor:
    """Return the output (B, Lq, heads * D), of value's type."""
    value, points = inputs.value, inputs.points
    batch, _, heads, channels = value.shape
    queries = points.shape[1]
    attended = points.new_zeros(batch * heads, channels, queries)
    # Summing level by level never holds the samples of all levels at once.
    for level in _levels(inputs, _probabilities(inputs)):
        attended += (_sample(level) * level.weights).sum(-1)
    return attended.view(batch, heads * channels, queries).transpose(1, 2).to(value.dtype).contiguous()


def backward(grad: Tensor, inputs: AttentionInputs) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of value, points and weights, given that of the output (B, Lq, heads * D)."""
    value, shapes, points, weights, reference = inputs
    batch, cells, heads, channels = value.shape
    queries = points.shape[1]
    grad_heads = grad.to(points.dtype).transpose(1, 2).reshape(batch * heads, channels, queries, 1)
    grad_value = points.new_zeros(batch, cells, heads, channels)
    grad_points, grad_weights = torch.zeros_like(points), torch.zeros_like(weights)
    probabilities = _probabilities(inputs)
    for level in _levels(inputs, probabilities):
        level_grad_weights = (_sample(level) * grad_heads).sum(1)  # (N, Lq, P)
        grad_maps, grad_grid = torch.ops.aten.grid_sampler_2d_backward(
            grad_heads * level.weights, level.maps, level.grid, 0, 0, False, (True, True)
        )  # bilinear, zeros outside, edges not at the outer cells' centers
        grad_value[:, level.cells] = grad_maps.reshape(batch, heads, channels, -1).permute(0, 3, 1, 2)
        grad_locations = 2 * grad_grid.unflatten(0, (batch, heads)).transpose(1, 2)
        height, width = shapes[level.number] if reference is not None else (1, 1)
        grad_points[:, :, :, level.number, :, 0] = grad_locations[..., 0] / width
        grad_points[:, :, :, level.number, :, 1] = grad_locations[..., 1] / height
        grad_weights[:, :, :, level.number] = level_grad_weights.unflatten(0, (batch, heads)).transpose(1, 2)
    if reference is not None:  # given their probabilities, the gradient of logits
        weighted = grad_weights * probabilities
        grad_weights = weighted - probabilities * weighted.sum((3, 4), keepdim=True)
    return grad_value.to(value.dtype), grad_points, grad_weights


class _Level(NamedTuple):
    """Inputs of grid_sample for one level: maps (N, D, H, W), grid (N, Lq, P, 2), weights (N, 1, Lq, P)."""

    number: int
    cells: slice  # of the S
    maps: Tensor
    grid: Tensor
    weights: Tensor


def _levels(inputs: AttentionInputs, probabilities: Tensor) -> Iterator[_Level]:
    """Yield the levels that have cells."""
    value, shapes, points, _, reference = inputs
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
        # Points that are far away or not finite would give NaN weights, or overflow integers.
        grid = 2 * locations - 1
        if not torch.onnx.is_in_onnx_export():  # ONNX takes three operators for it, on each point
            grid = grid.nan_to_num(nan=FAR)
        grid = grid.clamp(-FAR, FAR)
        yield _Level(
            index,
            slice(start, stop),
            cells.permute(0, 2, 3, 1).flatten(0, 1).unflatten(-1, (height, width)),
            grid.transpose(1, 2).flatten(0, 1),
            probabilities[:, :, :, index].transpose(1, 2).flatten(0, 1).unsqueeze(1),
        )


def _sample(level: _Level) -> Tensor:
    """Return the values (N, D, Lq, P) at the level's points."""
    return F.grid_sample(level.maps, level.grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _probabilities(inputs: AttentionInputs) -> Tensor:
    """Return the attention weights (B, Lq, heads, L, P); in the fused form they are given as logits."""
    weights = inputs.weights
    return weights if inputs.reference is None else weights.flatten(3).softmax(-1).view_as(weights)
