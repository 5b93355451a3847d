"""The torch operators `torch.ops.mask2former.*`: their schemas, checks, shapes and gradients.

Values are (B, S, heads, D), points (B, Lq, heads, L, P, 2) are x then y, weights (B, Lq, heads, L, P). In the
plain form (no `reference`) points are locations, where 0 and 1 are a map's outer edges, and weights are
probabilities. In the fused form points are offsets, in cells of their level, from `reference` (1 or B, Lq,
1 or L, 2) in [0, 1], and weights are logits, whose softmax over L and P the operator computes. Values are of
any float type; the rest is float32, or float64 with float64 values. Shapes are flat: H_0, W_0, H_1, W_1, ...

Shapes: `B` images, `S` cells of all maps together, `Lq` queries, `L` levels, `P` points, `D` channels
of a head.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mask2former.ops.backends import Backend, backend_for
from mask2former.ops.reference import AttentionInputs, Shapes

VALUE_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

ARGUMENTS = "Tensor value, SymInt[] spatial_shapes, Tensor points, Tensor weights, Tensor? reference"
LIBRARY = torch.library.Library("mask2former", "DEF")
LIBRARY.define(f"ms_deform_attn({ARGUMENTS}) -> Tensor", tags=torch.Tag.pt2_compliant_tag)
LIBRARY.define(
    f"ms_deform_attn_backward(Tensor grad, {ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)


def points_type(value: Tensor) -> torch.dtype:
    """Return the type of points and weights: float32, or float64 with float64 values."""
    return torch.float64 if value.dtype == torch.float64 else torch.float32


def _inputs(value: Tensor, spatial_shapes: Sequence[int], *others: Any) -> AttentionInputs:
    return AttentionInputs(value, _pairs(spatial_shapes), *others)


def _forward(*arguments: Any) -> Tensor:
    inputs = _inputs(*arguments)
    _check(inputs)
    if not (inputs.value.numel() and inputs.points.numel()):
        return torch.zeros_like(_fake_forward(*arguments))
    return _backend(inputs.value).forward(_contiguous(inputs))


def _backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    inputs = _inputs(*arguments)
    value, points = inputs.value, inputs.points
    _check(inputs)
    _check_like("grad", grad, (*points.shape[:2], value.shape[2] * value.shape[3]), value.dtype, value)
    if not (value.numel() and points.numel()):
        grads = _fake_backward(grad, *arguments)
        return grads[0].zero_(), grads[1].zero_(), grads[2].zero_()
    return _backend(value).backward(grad.contiguous(), _contiguous(inputs))


def _fake_forward(*arguments: Any) -> Tensor:
    value, _, points, _, _ = arguments
    batch, _, heads, channels = value.shape
    return value.new_empty(batch, points.shape[1], heads * channels)


def _fake_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    value, _, points, weights, _ = arguments
    return value.new_empty(value.shape), points.new_empty(points.shape), weights.new_empty(weights.shape)


def _backend(value: Tensor) -> Backend:
    return backend_for(value.device.type, value.dtype == torch.float64)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.spatial_shapes, points, weights, reference = inputs
    ctx.save_for_backward(value, points, weights, reference)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    value, points, weights, reference = ctx.saved_tensors
    grad_value, grad_points, grad_weights = torch.ops.mask2former.ms_deform_attn_backward(
        grad, value, ctx.spatial_shapes, points, weights, reference
    )
    grad_reference = None
    if ctx.needs_input_grad[4]:
        grad_levels = grad_points.sum((2, 4))  # (B, Lq, L, 2)
        for level, (height, width) in enumerate(_pairs(ctx.spatial_shapes)):
            grad_levels[:, :, level, 0] *= width  # a step of 1 in [0, 1] is a step of W or H cells
            grad_levels[:, :, level, 1] *= height
        grad_reference = grad_levels.sum_to_size(reference.shape)
    return grad_value, None, grad_points, grad_weights, grad_reference


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError("ms_deform_attn can be differentiated once, not twice")


def _pairs(spatial_shapes: Sequence[int]) -> Shapes:
    return tuple(zip(spatial_shapes[::2], spatial_shapes[1::2], strict=True))


def _contiguous(inputs: AttentionInputs) -> AttentionInputs:
    value, shapes, points, weights, reference = inputs
    if reference is not None:
        reference = reference.contiguous()
    return AttentionInputs(value.contiguous(), shapes, points.contiguous(), weights.contiguous(), reference)


def _check(inputs: AttentionInputs) -> None:
    """Raise ValueError where compiled code would read outside a tensor; this needs no device."""
    value, shapes, points, weights, reference = inputs
    _check_value(value, shapes)
    is_plain = reference is None
    name = "sampling_locations" if is_plain else "sampling_offsets"
    if points.dim() != 6:
        raise ValueError(
            f"{name} is of shape {tuple(points.shape)},"
            " where (images, queries, heads, levels, points, 2) is expected"
        )
    batch, _, heads, _ = value.shape
    queries, levels = points.shape[1], len(shapes)
    samples = (batch, queries, heads, levels, points.shape[4])
    dtype = points_type(value)
    _check_like(name, points, (*samples, 2), dtype, value)
    _check_like("attention_weights" if is_plain else "attention_logits", weights, samples, dtype, value)
    if reference is not None:
        images = 1 if reference.shape[:1] == (1,) else batch
        levels = 1 if reference.shape[2:3] == (1,) else levels
        _check_like("reference_points", reference, (images, queries, levels, 2), dtype, value)


def _check_value(value: Tensor, shapes: Shapes) -> None:
    if value.dim() != 4:
        raise ValueError(
            f"value is of shape {tuple(value.shape)}, where (images, cells, heads, channels) is expected"
        )
    if value.dtype not in VALUE_TYPES:
        raise ValueError(f"value is of {value.dtype}, where one of {VALUE_TYPES} is expected")
    if any(side < 0 for shape in shapes for side in shape):
        raise ValueError(f"spatial_shapes {shapes} has a negative side")
    cells = sum(height * width for height, width in shapes)
    if cells != value.shape[1]:
        raise ValueError(f"spatial_shapes {shapes} has {cells} cells, and value {value.shape[1]}")


def _check_like(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, value: Tensor) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name} is of shape {tuple(tensor.shape)}, where {shape} is expected")
    if tensor.dtype != dtype:
        raise ValueError(f"{name} is of {tensor.dtype}, where {dtype} is expected")
    if tensor.device != value.device:
        raise ValueError(f"{name} is on {tensor.device}, and value on {value.device}")


# For any device: `_backend` chooses.
LIBRARY.impl("ms_deform_attn", _forward, "CompositeExplicitAutograd")
LIBRARY.impl("ms_deform_attn_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("mask2former::ms_deform_attn", _fake_forward, lib=LIBRARY)
torch.library.register_fake("mask2former::ms_deform_attn_backward", _fake_backward, lib=LIBRARY)
torch.library.register_autograd("mask2former::ms_deform_attn", _gradients, setup_context=_save, lib=LIBRARY)
torch.library.register_autograd("mask2former::ms_deform_attn_backward", _no_second_derivative, lib=LIBRARY)
