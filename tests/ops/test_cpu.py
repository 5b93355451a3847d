"""The compiled CPU backend against PyTorch's in float64, and what is its own: threads, bounds, 16 bits.

Where it was not built, all this is skipped, which is a failure in CI (tests/conftest.py).
"""

import subprocess
import sys

import pytest
import torch
from explicit_attention import FORMS, convert, draw
from hypothesis import given, settings
from hypothesis import strategies as st

from mask2former.ops import cpu, reference
from mask2former.ops.reference import AttentionInputs

REASON = cpu.why_unavailable()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))
SHAPES = ((7, 9), (1, 1), (4, 5))
WIDE = {"shapes": SHAPES, "queries": 70, "heads": 3, "points": 4, "channels": 43}


def as_inputs(shapes, tensors, dtype=torch.float32):
    value, *others = convert(tensors, dtype)
    return AttentionInputs(value, shapes, *others)


def forward(*inputs):
    return cpu.forward(AttentionInputs(*inputs))


def both(shapes, tensors):
    """Return output and gradients of each backend: PyTorch's in float64."""
    tensors = convert(tensors, torch.float32)
    inputs, exact = as_inputs(shapes, tensors), as_inputs(shapes, tensors, torch.float64)
    result = cpu.forward(inputs)
    grad = torch.linspace(-1, 2, result.numel()).view_as(result)
    mine = [result, *cpu.backward(grad, inputs)]
    return mine, [reference.forward(exact), *reference.backward(grad.double(), exact)]


def assert_equal_backends(shapes, tensors, **tolerance):
    for mine, exact in zip(*both(shapes, tensors), strict=True):
        torch.testing.assert_close(mine.double(), exact, **(tolerance or {"atol": 2e-5, "rtol": 2e-4}))


sides = st.integers(0, 5)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=60)
@given(
    shapes=st.lists(st.tuples(sides, sides), min_size=1, max_size=4).map(tuple),
    batch=st.integers(1, 3),
    queries=st.integers(1, 5),
    heads=st.integers(1, 5),
    points=st.integers(1, 7),
    channels=st.sampled_from([1, 2, 3, 8, 17, 32, 64]),
    seed=st.integers(0, 1000),
)
def test_equals_the_pytorch_backend(form, shapes, **sizes):
    assert_equal_backends(shapes, draw(form, shapes=shapes, **sizes))


@pytest.mark.parametrize("form", FORMS)
def test_more_points_than_are_placed_at_once(form):
    sizes = {"shapes": SHAPES, "queries": 3, "heads": 3, "points": 61, "channels": 9}
    assert_equal_backends(SHAPES, draw(form, **sizes))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("threads", [2, 3, 16])
def test_results_are_bitwise_equal_with_any_number_of_threads(threads, form):
    """16 threads are more than there are heads, so rows of the maps are distributed as well."""
    before = torch.get_num_threads()
    results = []
    for count in (1, threads):
        torch.set_num_threads(count)
        results.append(both(SHAPES, draw(form, **WIDE))[0])
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_values_that_no_point_reads_do_not_matter():
    """Outside of the map is zero, not zero times whatever lies at the edge or in the first cell."""
    shapes = ((2, 3),)
    value = torch.full((1, 6, 1, 32), float("nan"))
    value[0, 5] = 1.0  # the last cell
    points = torch.tensor([[1 + 0.25 / 3, 1 + 0.25 / 2], [9.0, 0.5]]).view(1, 1, 1, 1, 2, 2)
    result = forward(value, shapes, points, torch.ones(1, 1, 1, 1, 2))
    torch.testing.assert_close(result, torch.full((1, 1, 32), 0.25 * 0.25))


def test_logits_of_any_size():
    value, offsets, logits, centers = draw("fused", **WIDE)
    for scaled in (logits * 100, logits + 1e4, logits - 1e4, logits * 0 - 1e30):
        assert_equal_backends(SHAPES, (value, offsets, scaled, centers), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_number_of_16_bits_is_read_and_written(dtype):
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    value = bits.view(dtype).view(1, 1, 64, 1024)
    result = forward(value, ((1, 1),), torch.full((1, 1, 64, 1, 1, 2), 0.5), torch.ones(1, 1, 64, 1, 1))
    read, given = result.flatten(), value.flatten()
    asked = ~given.isinf()  # times the weight 0 of a corner outside, that is NaN
    torch.testing.assert_close(read[asked], given[asked], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_results_of_16_bits_are_rounded_as_torch_rounds(dtype):
    """Halfway numbers, numbers below the normal ones, and numbers too large."""
    numbers = torch.cat([torch.logspace(-30, 20, 4000, base=2), torch.arange(60000.0, 70000.0, 4)])
    near = [numbers.to(dtype).float() * (1 + step) for step in (2**-11, 2**-8)]  # halfway to the next
    numbers = torch.cat([numbers, *near])
    numbers = numbers[numbers.isfinite()]
    heads = numbers.numel()
    value = torch.ones(1, 1, heads, 1, dtype=dtype)
    weights = numbers.view(1, 1, heads, 1, 1)
    result = forward(value, ((1, 1),), torch.full((1, 1, heads, 1, 1, 2), 0.5), weights)
    assert torch.equal(result.flatten(), numbers.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_16_bits_are_summed_in_float32(dtype, form):
    inputs = as_inputs(SHAPES, draw(form, **WIDE))
    inputs = inputs._replace(value=inputs.value.to(dtype))
    grad = torch.linspace(-1, 2, 2 * 70 * 3 * 43).view(2, 70, -1).to(dtype)
    mine = cpu.backward(grad, inputs)
    wide = cpu.backward(grad.float(), inputs._replace(value=inputs.value.float()))
    assert mine[0].dtype == dtype
    assert torch.equal(mine[0], wide[0].to(dtype))
    torch.testing.assert_close(mine[1:], wide[1:])


def test_maps_that_do_not_fill_the_value_are_refused():
    inputs = as_inputs(SHAPES, draw("plain", shapes=SHAPES))
    for shapes in (((7, 9), (1, 1), (4, 4)), ((-7, -9), (1, 1), (4, 5)), ((2**31, 2**31), (1, 1), (4, 5))):
        with pytest.raises(RuntimeError, match="do not fill the value"):
            cpu.forward(inputs._replace(shapes=shapes))


def test_a_missing_or_incompatible_library_is_reported(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu, "LIBRARY", tmp_path / "_cpu.so")
    cpu._library.cache_clear()
    assert "not built" in cpu.why_unavailable()
    (tmp_path / "_cpu.so").write_bytes(b"nothing")
    assert "cannot be loaded" in cpu.why_unavailable()
    monkeypatch.undo()
    cpu._library.cache_clear()
    monkeypatch.setattr(cpu, "INTERFACE", 0)
    assert "another version" in cpu.why_unavailable()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_only_torchs_openmp_library_is_loaded():
    """Ours adds none to those that torch loads."""
    code = """
import torch
from pathlib import Path
def loaded():
    files = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    return {f for f in files if "gomp" in f or "omp5" in f or "libomp" in f}
before = loaded()
from mask2former.ops import cpu
assert cpu.why_unavailable() is None
from mask2former.ops.reference import AttentionInputs
points, weights = torch.ones(1, 1, 1, 1, 1, 2), torch.ones(1, 1, 1, 1, 1)
cpu.forward(AttentionInputs(torch.ones(1, 1, 1, 1), ((1, 1),), points, weights))
assert loaded() == before, loaded() - before
"""
    subprocess.run([sys.executable, "-c", code], check=True)
