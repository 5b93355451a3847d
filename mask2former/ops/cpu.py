"""Multi-scale deformable attention on a CPU, by the compiled library next to this file.

`setup.py` builds it from `csrc/ms_deform_attn.cpp`. It does not depend on torch: this module passes pointers
and sizes. It uses the same threads as torch: it is linked without an OpenMP library and uses the one that
torch has loaded. So torch must be imported first.

Shapes: `B` images, `S` cells of all maps together, `Lq` queries, `D` channels of a head.
"""

import ctypes
import functools
import itertools
from pathlib import Path

import torch
from torch import Tensor

from mask2former.ops.reference import AttentionInputs

LIBRARY = Path(__file__).with_name("_cpu.so")
INTERFACE = 1  # kInterface of the C++
VALUE_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
SIZES = (
    *("batch", "cells", "queries", "heads", "levels", "points", "channels"),
    *("reference_batch", "reference_levels", "value_type", "threads"),
)
POINTERS = ("shapes", "value", "positions", "weights", "reference")
ERRORS = {1: "the maps do not fill the value, or have 2**31 cells or more", 2: "out of memory"}


class _Problem(ctypes.Structure):
    """The C++ side's struct of the same name."""

    _fields_ = [(name, ctypes.c_int64) for name in SIZES] + [(name, ctypes.c_void_p) for name in POINTERS]


def why_unavailable() -> str | None:
    """Return None if the library works, else the reason in one sentence."""
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


def forward(inputs: AttentionInputs) -> Tensor:
    """Return the output (B, Lq, heads * D), of value's type."""
    batch, _, heads, channels = inputs.value.shape
    output = inputs.value.new_empty(batch, inputs.points.shape[1], heads * channels)
    problem, _sides = _describe(inputs)
    _check(_library().ms_deform_attn_forward(ctypes.byref(problem), _pointer(output)))
    return output


def backward(grad: Tensor, inputs: AttentionInputs) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of value, points and weights, given that of the output (B, Lq, heads * D)."""
    grad_value = torch.zeros_like(inputs.value, dtype=torch.float32)
    grad_points, grad_weights = torch.empty_like(inputs.points), torch.empty_like(inputs.weights)
    problem, _sides = _describe(inputs)
    results = (_pointer(grad_value), _pointer(grad_points), _pointer(grad_weights))
    _check(_library().ms_deform_attn_backward(ctypes.byref(problem), _pointer(grad), *results))
    return grad_value.to(inputs.value.dtype), grad_points, grad_weights


@functools.cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(LIBRARY))


def _describe(inputs: AttentionInputs) -> tuple[_Problem, ctypes.Array[ctypes.c_int64]]:
    """Return the struct, and the array that it points to, which has to outlive the call."""
    value, shapes, points, weights, reference = inputs
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
    if status:
        raise RuntimeError(f"ms_deform_attn on the CPU: {ERRORS[status]}")
