"""Multi-scale deformable attention on CUDA devices: each call is one launch of csrc/ms_deform_attn.cu.

Shapes: `B` images, `S` cells of all maps laid end to end, `Lq` queries, `L` levels, `P` points, `D` channels
of a head. Tensors are contiguous; points, weights and reference are float32.
"""

import ctypes
from ctypes import c_int, c_longlong, c_void_p
from functools import lru_cache
from math import ceil

import torch
from torch import Tensor

from mask2former.ops.cuda import driver as cuda_driver
from mask2former.ops.cuda import kernels as cuda_kernels
from mask2former.ops.cuda.kernels import Kernel
from mask2former.ops.reference import Shapes

# The same in the text: `THREADS`, `WARP`, `MAX_LEVELS`, `Level`, `Problem`.
THREADS = 256
WARP = 32
MAX_LEVELS = 64
MAX_GRID = 65535  # blocks along a grid's second and third side
MAX_SIDE = 2**24  # up to here, float32 holds every cell's number
MAX_INT = 2**31 - 1 - THREADS


class Level(ctypes.Structure):
    """One map."""

    _fields_ = [("height", c_int), ("width", c_int), ("start", c_int)]


class Problem(ctypes.Structure):
    """The one argument of every kernel."""

    _fields_ = [
        *((name, c_void_p) for name in ("value", "points", "weights", "reference", "output")),
        *((name, c_void_p) for name in ("grad", "grad_value", "grad_points", "grad_weights")),
        ("reference_image_stride", c_longlong),
        *((name, c_int) for name in ("reference_query_stride", "reference_level_stride")),
        *((name, c_int) for name in ("images", "cells", "queries", "heads", "channels")),
        *((name, c_int) for name in ("levels", "level_points", "team")),
        ("level", Level * MAX_LEVELS),
    ]


def why_unavailable() -> str | None:
    """Why this backend cannot work here, in a sentence; None where it can."""
    if torch.version.hip:
        return "this torch is built for ROCm"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    return cuda_driver.why_unavailable() or cuda_kernels.why_unavailable()


def forward(
    value: Tensor, shapes: Shapes, points: Tensor, weights: Tensor, reference: Tensor | None
) -> Tensor:
    """The attended values, (B, Lq, heads * D), of value's type.

    Args:
        value: (B, S, heads, D), float32, float16 or bfloat16.
        shapes: (H_l, W_l) of each level.
        points: (B, Lq, heads, L, P, 2): locations in [0, 1], or with a reference, offsets in cells.
        weights: (B, Lq, heads, L, P): probabilities, or with a reference, logits.
        reference: (1 or B, Lq, 1 or L, 2) in [0, 1], or None.

    Raises:
        ValueError: sizes that the kernels' integers cannot count.
        RuntimeError: the driver or NVRTC refused.
    """
    output = value.new_empty(value.shape[0], points.shape[1], value.shape[2] * value.shape[3])
    value, points, weights, reference = _aligned(value, points, weights, reference)
    channels = value.shape[3]
    wide = 16 // value.element_size()
    pointers = {"output": output.data_ptr()}
    _launch(
        "forward", wide if channels % wide == 0 else 1, value, shapes, points, weights, reference, pointers
    )
    return output


def backward(
    grad: Tensor, value: Tensor, shapes: Shapes, points: Tensor, weights: Tensor, reference: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value (of its type), points and weights (float32); arguments and errors as for `forward`.

    The gradient of value is summed by atomic additions, whose order differs from run to run.
    """
    grad_value = torch.zeros_like(value, dtype=torch.float32)
    grad_points, grad_weights = torch.empty_like(points), torch.empty_like(weights)
    grad, value, points, weights, reference = _aligned(grad, value, points, weights, reference)
    pointers = {
        "grad": grad.data_ptr(),
        "grad_value": grad_value.data_ptr(),
        "grad_points": grad_points.data_ptr(),
        "grad_weights": grad_weights.data_ptr(),
    }
    wide = 4 if value.shape[3] % 4 == 0 else 1
    _launch("backward", wide, value, shapes, points, weights, reference, pointers)
    return grad_value.to(value.dtype), grad_points, grad_weights


def _aligned(*tensors: Tensor | None) -> tuple:
    """The tensors, copied where their address is no multiple of 16, as loads of 16 bytes want it."""
    return tuple(
        tensor.clone() if tensor is not None and tensor.data_ptr() % 16 else tensor for tensor in tensors
    )


def _launch(
    direction: str,
    wide: int,
    value: Tensor,
    shapes: Shapes,
    points: Tensor,
    weights: Tensor,
    reference: Tensor | None,
    pointers: dict[str, int],
) -> None:
    """Start a kernel on torch's current stream; each lane has `wide` channels at a time."""
    images, cells, heads, channels = value.shape
    queries, levels, level_points = points.shape[1], points.shape[3], points.shape[4]
    _check_sizes(images, cells, queries, heads, channels, level_points, shapes)
    team = min(1 << (ceil(channels / wide) - 1).bit_length(), WARP)
    problem = Problem(
        value=value.data_ptr(),
        points=points.data_ptr(),
        weights=weights.data_ptr(),
        images=images,
        cells=cells,
        queries=queries,
        heads=heads,
        channels=channels,
        levels=levels,
        level_points=level_points,
        team=team,
        level=_levels(shapes),
        **pointers,
        **_reference_fields(reference),
    )
    form, width = "plain" if reference is None else "fused", "scalar" if wide == 1 else "vector"
    type_name = str(value.dtype).removeprefix("torch.")
    kernel = Kernel(direction, type_name, form, heads, levels, level_points, channels, width)
    grid = (ceil(queries / (THREADS // team)), heads, min(images, MAX_GRID))
    function = cuda_kernels.function_for(value.get_device(), kernel)
    cuda_driver.launch(function, grid, THREADS, _stream(value.device), problem)


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream


def _reference_fields(reference: Tensor | None) -> dict[str, int]:
    """The reference's address and strides; a size of 1 serves all images or all levels."""
    if reference is None:
        return {}
    images, queries, levels = reference.shape[:3]
    return {
        "reference": reference.data_ptr(),
        "reference_image_stride": 0 if images == 1 else queries * levels * 2,
        "reference_query_stride": levels * 2,
        "reference_level_stride": 0 if levels == 1 else 2,
    }


@lru_cache(maxsize=128)
def _levels(shapes: Shapes) -> "ctypes.Array[Level]":
    levels, start = (Level * MAX_LEVELS)(), 0
    for level, (height, width) in zip(levels, shapes, strict=False):
        level.height, level.width, level.start = height, width, start
        start += height * width
    return levels


def _check_sizes(
    images: int, cells: int, queries: int, heads: int, channels: int, level_points: int, shapes: Shapes
) -> None:
    """Raise ValueError for sizes beyond the kernels' integers."""
    limits = {
        "images": (images, MAX_INT),
        "cells": (cells, MAX_INT),
        "queries": (queries, MAX_INT),
        "heads": (heads, MAX_GRID),
        "channels of all heads": (heads * channels, MAX_INT),
        "levels": (len(shapes), MAX_LEVELS),
        "points of a head": (len(shapes) * level_points, MAX_INT // 2),
        "cells along a side": (max(side for shape in shapes for side in shape), MAX_SIDE),
    }
    for name, (number, limit) in limits.items():
        if number > limit:
            raise ValueError(f"ms_deform_attn on CUDA takes at most {limit} {name}, not {number}")
