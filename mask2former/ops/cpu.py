"""Multi-scale deformable attention on a CPU, by the compiled library next to this file.

`setup.py` builds it from `csrc/ms_deform_attn.cpp`; it knows nothing of torch, so this module hands it
pointers and sizes. It computes on as many threads as torch, and on the same ones: its OpenMP calls are left
open when it is linked, and the OpenMP library that torch has loaded answers them. So torch is imported first.

Shapes: `B` images, `S` cells of all maps laid end to end, `Lq` queries, `D` channels of a head.
"""

import ctypes
import functools
import itertools
from pathlib import Path

import torch
from torch import Tensor

from mask2former.ops.reference import Shapes

LIBRARY = Path(__file__).with_name("_cpu.so")
INTERFACE = 1  # kInterface of the C++
VALUE_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
SIZES = (
    *("batch", "cells", "queries", "heads", "levels", "points", "channels"),
    *("reference_batch", "reference_levels", "value_type", "threads"),
)
POINTERS = ("shapes", "value", "positions", "weights", "reference")
ERRORS = {1: "the maps do not fill the value, or have 2**31 cells and more", 2: "no memory left"}


class _Problem(ctypes.Structure):
    """The C++ side's struct of the same name."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in SIZES),
        *((name, ctypes.c_void_p) for name in POINTERS),
    )


def why_unavailable() -> str | None:
    """None where the library works, else one sentence."""
    if not LIBRARY.exists():
        return (
            f"{LIBRARY.name} was not built: installing found no C++ compiler that could, or this is a clone "
            "that was not installed with pip install -e"
        )
    try:
        found = _library().mask2former_ops_interface()
    except (OSError, AttributeError) as error:
        return f"{LIBRARY} cannot be loaded: {error}"
    if found != INTERFACE:
        return f"{LIBRARY} is of another version ({found}, not {INTERFACE}): install again"
    return None


def forward(
    value: Tensor, shapes: Shapes, points: Tensor, weights: Tensor, reference: Tensor | None
) -> Tensor:
    """The operator's output (B, Lq, heads * D) of value's type; the arguments are those of `operator.py`."""
    batch, _, heads, channels = value.shape
    output = value.new_empty(batch, points.shape[1], heads * channels)
    problem, _sides = _describe(value, shapes, points, weights, reference)
    _check(_library().ms_deform_attn_forward(ctypes.byref(problem), _pointer(output)))
    return output


def backward(
    grad: Tensor, value: Tensor, shapes: Shapes, points: Tensor, weights: Tensor, reference: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, points and weights, given that of the output (B, Lq, heads * D)."""
    grad_value = torch.zeros_like(value, dtype=torch.float32)
    grad_points, grad_weights = torch.empty_like(points), torch.empty_like(weights)
    problem, _sides = _describe(value, shapes, points, weights, reference)
    results = (_pointer(grad_value), _pointer(grad_points), _pointer(grad_weights))
    _check(_library().ms_deform_attn_backward(ctypes.byref(problem), _pointer(grad), *results))
    return grad_value.to(value.dtype), grad_points, grad_weights


@functools.cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(LIBRARY))


def _describe(
    value: Tensor, shapes: Shapes, points: Tensor, weights: Tensor, reference: Tensor | None
) -> tuple[_Problem, ctypes.Array[ctypes.c_int64]]:
    """The struct, and the array that it points to, which has to outlive the call."""
    sides = (ctypes.c_int64 * (2 * len(shapes)))(*itertools.chain(*shapes))
    assert points.dtype == weights.dtype == torch.float32
    assert all(x.is_contiguous() for x in (value, points, weights, reference) if x is not None)
    problem = _Problem(
        batch=value.shape[0],
        cells=value.shape[1],
        queries=points.shape[1],
        heads=value.shape[2],
        levels=points.shape[3],
        points=points.shape[4],
        channels=value.shape[3],
        reference_batch=1 if reference is None else reference.shape[0],
        reference_levels=1 if reference is None else reference.shape[2],
        value_type=VALUE_TYPES[value.dtype],
        threads=torch.get_num_threads(),
        shapes=ctypes.addressof(sides),
        value=value.data_ptr(),
        positions=points.data_ptr(),
        weights=weights.data_ptr(),
        reference=None if reference is None else reference.data_ptr(),
    )
    return problem, sides


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _check(status: int) -> None:
    """Raises a RuntimeError where the library tells of one."""
    if status:
        raise RuntimeError(f"ms_deform_attn on the CPU: {ERRORS[status]}")
