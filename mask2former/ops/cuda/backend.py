"""Multi-scale deformable attention on CUDA devices: each call is one launch of csrc/ms_deform_attn.cu.

Shapes: `B` images, `S` cells of all maps together, `Lq` queries, `L` levels, `P` points, `D` channels
of a head. Inputs are contiguous; `operator.py` describes them.
"""

import ctypes
from ctypes import c_int, c_longlong, c_void_p
from functools import lru_cache
from math import ceil

import torch
from torch import Tensor

from mask2former.ops.cuda import driver, kernels
from mask2former.ops.cuda.kernels import Kernel
from mask2former.ops.reference import AttentionInputs, Shapes

# THREADS, WARP, MAX_LEVELS, Level and Problem must equal those in csrc/ms_deform_attn.cu.
THREADS = 256
WARP = 32
MAX_LEVELS = 64
MAX_GRID = 65535  # blocks along a grid's second and third dimension
MAX_SIDE = 2**24  # the largest side for which float32 represents every cell index
MAX_INT = 2**31 - 1 - THREADS


class Level(ctypes.Structure):
    """The sides of one map, and the index of its first cell."""

    _fields_ = [("height", c_int), ("width", c_int), ("start", c_int)]


class Problem(ctypes.Structure):
    """The single argument of every kernel."""

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
    """Return None if this backend works here, else the reason in one sentence."""
    if torch.version.hip:
        return "this torch is built for ROCm"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    return driver.why_unavailable() or kernels.why_unavailable()


def forward(inputs: AttentionInputs) -> Tensor:
    """Return the output (B, Lq, heads * D), of value's type.

    Raises:
        ValueError: sizes that overflow the kernels' integers.
        RuntimeError: an error of the driver or NVRTC.
    """
    batch, _, heads, channels = inputs.value.shape
    output = inputs.value.new_empty(batch, inputs.points.shape[1], heads * channels)
    wide = 16 // inputs.value.element_size()
    _launch("forward", wide if channels % wide == 0 else 1, inputs, {"output": output})
    return output


def backward(grad: Tensor, inputs: AttentionInputs) -> tuple[Tensor, Tensor, Tensor]:
    """Return gradients of value (of its type), points and weights (float32); errors are as for `forward`.

    The gradient of value is summed by atomic additions, whose order differs from run to run.
    """
    value, points, weights = inputs.value, inputs.points, inputs.weights
    grads = {
        "grad_value": torch.zeros_like(value, dtype=torch.float32),
        "grad_points": torch.empty_like(points),
        "grad_weights": torch.empty_like(weights),
    }
    _launch("backward", 4 if value.shape[3] % 4 == 0 else 1, inputs, {"grad": _aligned(grad), **grads})
    return grads["grad_value"].to(value.dtype), grads["grad_points"], grads["grad_weights"]


def _aligned(tensor: Tensor) -> Tensor:
    """Copy a tensor whose address is not a multiple of 16, which loads of 16 bytes require."""
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


def _launch(direction: str, wide: int, inputs: AttentionInputs, others: dict[str, Tensor]) -> None:
    """Start a kernel on torch's current stream; each lane processes `wide` channels at a time."""
    value, points, weights = (_aligned(tensor) for tensor in (inputs.value, inputs.points, inputs.weights))
    tensors = {"value": value, "points": points, "weights": weights, **others}
    reference = None if inputs.reference is None else _aligned(inputs.reference)
    if reference is not None:
        tensors["reference"] = reference
    images, cells, heads, channels = value.shape
    queries, levels, level_points = points.shape[1], points.shape[3], points.shape[4]
    _check_sizes(inputs)
    team = min(1 << (ceil(channels / wide) - 1).bit_length(), WARP)
    problem = Problem(
        images=images,
        cells=cells,
        queries=queries,
        heads=heads,
        channels=channels,
        levels=levels,
        level_points=level_points,
        team=team,
        level=_levels(inputs.shapes),
        **{name: tensor.data_ptr() for name, tensor in tensors.items()},
    )
    if reference is not None:  # a size of 1 is broadcast over images or levels
        reference_images, _, reference_levels, _ = reference.shape
        problem.reference_image_stride = 0 if reference_images == 1 else queries * reference_levels * 2
        problem.reference_query_stride = reference_levels * 2
        problem.reference_level_stride = 0 if reference_levels == 1 else 2
    form, width = "plain" if reference is None else "fused", "scalar" if wide == 1 else "vector"
    type_name = str(value.dtype).removeprefix("torch.")
    kernel = Kernel(direction, type_name, form, heads, levels, level_points, channels, width)
    grid = (ceil(queries / (THREADS // team)), heads, min(images, MAX_GRID))
    function = kernels.function_for(value.get_device(), kernel)
    driver.launch(function, grid, THREADS, _stream(value.device), problem)


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream


@lru_cache(maxsize=128)
def _levels(shapes: Shapes) -> "ctypes.Array[Level]":
    levels, start = (Level * MAX_LEVELS)(), 0
    for level, (height, width) in zip(levels, shapes, strict=False):
        level.height, level.width, level.start = height, width, start
        start += height * width
    return levels


def _check_sizes(inputs: AttentionInputs) -> None:
    """Raise ValueError for sizes that overflow the kernels' integers."""
    images, cells, heads, channels = inputs.value.shape
    levels = len(inputs.shapes)
    limits = {
        "images": (images, MAX_INT),
        "cells": (cells, MAX_INT),
        "queries": (inputs.points.shape[1], MAX_INT),
        "heads": (heads, MAX_GRID),
        "channels of all heads": (heads * channels, MAX_INT),
        "levels": (levels, MAX_LEVELS),
        "points of a head": (levels * inputs.points.shape[4], MAX_INT // 2),
        "cells along a side": (max(side for shape in inputs.shapes for side in shape), MAX_SIDE),
    }
    for name, (number, limit) in limits.items():
        if number > limit:
            raise ValueError(f"ms_deform_attn on CUDA takes at most {limit} {name}, not {number}")
