"""Both forms of deformable attention, on every backend that works here, against explicit loops."""

import math

import pytest
import torch
from explicit_attention import BACKENDS, FORMS, SHAPES, asking_for, attend, convert, draw, explicit
from hypothesis import given, settings
from hypothesis import strategies as st

from mask2former.ops import ms_deform_attn, ms_deform_attn_from_offsets

sides = st.integers(0, 4)
CASES = {
    "shapes": st.lists(st.tuples(sides, sides), min_size=1, max_size=3).map(tuple),
    "batch": st.integers(1, 2),
    "queries": st.integers(1, 3),
    "heads": st.integers(1, 3),
    "points": st.integers(1, 3),
    "channels": st.integers(1, 9),
    "seed": st.integers(0, 1000),
}
WIDE = {"shapes": ((7, 9), (4, 5), (1, 3)), "queries": 11, "heads": 8, "points": 4, "channels": 32}


def compare(shapes, tensors, device, dtype=torch.float32, **tolerance):
    """Compare output and all gradients with those of the loops in float64."""
    ours = [t.detach().to(device, dtype).requires_grad_() if t is not None else None for t in tensors]
    exact = [t.detach().clone().requires_grad_() if t is not None else None for t in tensors]
    result, expected = attend(ours[0], shapes, *ours[1:]), explicit(exact[0], shapes, *exact[1:])
    torch.testing.assert_close(result.cpu().double(), expected, **tolerance)
    seed = torch.linspace(-1, 2, expected.numel(), dtype=torch.float64).view_as(expected)
    result.backward(seed.to(device, dtype))
    expected.backward(seed)
    for mine, other in zip(ours, exact, strict=True):
        if mine is not None:
            grad = torch.zeros_like(other) if other.grad is None else other.grad
            torch.testing.assert_close(mine.grad.cpu().double(), grad, **tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=40)
@given(**CASES)
def test_every_backend_equals_the_loops(backend, form, **sizes):
    with asking_for(backend) as device:
        compare(sizes["shapes"], draw(form, **sizes), device, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_float64_is_exact(form):
    compare(SHAPES, draw(form), "cpu", torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
def test_sizes_of_a_real_model_equal_the_loops(backend, form):
    with asking_for(backend) as device:
        compare(WIDE["shapes"], draw(form, **WIDE), device, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("levels", [1, len(SHAPES)])
def test_reference_points_may_be_shared(backend, images, levels):
    value, offsets, logits, reference = draw("fused")
    with asking_for(backend) as device:
        tensors = (value, offsets, logits, reference[:images, :, :levels])
        compare(SHAPES, tensors, device, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_of_16_bits_are_summed_in_float32(backend, dtype):
    """The result is the exact one of the rounded values, rounded once; so is the gradient of the values."""
    value, *others = draw("fused", **WIDE)
    rounded = [value.to(dtype), *convert(others, torch.float32)]
    exact = [t.double().requires_grad_() for t in rounded]
    expected = attend(exact[0], WIDE["shapes"], *exact[1:])
    seed = torch.linspace(-1, 2, expected.numel()).view_as(expected).to(dtype)
    expected.backward(seed.double())
    with asking_for(backend) as device:
        ours = [t.to(device).requires_grad_() for t in rounded]
        result = attend(ours[0], WIDE["shapes"], *ours[1:])
        result.backward(seed.to(device))
    one_rounding = {"rtol": torch.finfo(dtype).eps, "atol": 1e-5}
    assert result.dtype == dtype and ours[0].grad.dtype == dtype
    torch.testing.assert_close(result.double().cpu(), expected, **one_rounding)
    torch.testing.assert_close(ours[0].grad.double().cpu(), exact[0].grad, **one_rounding)
    for mine, other in zip(ours[1:], exact[1:], strict=True):
        assert mine.grad.dtype == torch.float32
        torch.testing.assert_close(mine.grad.double().cpu(), other.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_points_of_16_bits_are_widened(backend):
    value, *others = convert(draw("fused"), torch.bfloat16)
    with asking_for(backend) as device:
        ours = [t.to(device).requires_grad_() for t in others]
        result = attend(value.to(device), SHAPES, *ours)
        result.sum().backward()
    expected = explicit(value.double(), SHAPES, *convert(others, torch.float64))
    torch.testing.assert_close(result.cpu().double(), expected, rtol=2**-8, atol=1e-5)
    assert all(t.grad.dtype == torch.bfloat16 for t in ours)


NOWHERE = [math.nan, math.inf, -math.inf, 3e38, -3e38, 2.0**31, -(2.0**31), 2.0**63, 1e6, -1e6]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("place", NOWHERE)
@pytest.mark.parametrize("form", FORMS)
def test_a_non_finite_point_contributes_nothing(backend, place, form):
    """Alone it gives zero and zero gradients; among others it leaves theirs as they are."""
    value, points, weights, reference = convert(draw(form, channels=11), torch.float32)
    points[:, 0] = place  # all points of the first query
    points[:, 1, :, :, 1, 0] = place  # the second point of the others, in x; then in y
    points[:, 2, :, :, 1, 1] = place
    with asking_for(backend) as device:
        tensors = convert((value, points, weights, reference), device)
        given = [t.requires_grad_() for t in tensors if t is not None]
        result = attend(tensors[0], SHAPES, *tensors[1:])
        result.sum().backward()
    expected = explicit(value, SHAPES, points, weights, reference)
    torch.testing.assert_close(result.cpu(), expected, atol=1e-5, rtol=1e-4)
    assert not result[:, 0].any() and not tensors[1].grad[:, 0].any()
    assert all(t.grad.isfinite().all() for t in given)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_single_cell_is_interpolated_linearly_in_both_axes(backend):
    """The value of a single cell at (dx, dy) cells from its center is worth (1 - |dx|)(1 - |dy|)."""
    steps = torch.tensor([-1.5, -1.0, -0.75, 0.0, 0.25, 1.0, 1.5])
    offsets = torch.cartesian_prod(steps, steps).view(1, -1, 1, 1, 1, 2)
    expected = (1 - offsets.abs()).clamp(min=0).prod(-1).view(1, -1, 1)
    with asking_for(backend) as device:
        one = torch.ones(1, 1, 1, 1, device=device)
        logits = torch.zeros(offsets.shape[:-1], device=device)
        center = torch.full((1, offsets.shape[1], 1, 2), 0.5, device=device)
        result = ms_deform_attn_from_offsets(one, ((1, 1),), center, offsets.to(device), logits)
        torch.testing.assert_close(result.cpu(), expected)
        locations = offsets.to(device) + 0.5
        torch.testing.assert_close(ms_deform_attn(one, ((1, 1),), locations, logits + 1).cpu(), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_huge_logits_choose_one_point(backend):
    value, offsets, logits, reference = convert(draw("fused"), torch.float32)
    logits *= 1e4  # their exponentials overflow
    with asking_for(backend) as device:
        result = attend(value.to(device), SHAPES, *convert((offsets, logits, reference), device))
    chosen = torch.nn.functional.one_hot(logits.flatten(3).argmax(-1), logits[0, 0, 0].numel())
    locations = reference[:, :, None, :, None] + offsets / torch.tensor([[4, 3], [2, 2], [1, 1]])[:, None]
    expected = explicit(value, SHAPES, locations, chosen.view_as(logits).float(), None)
    torch.testing.assert_close(result.cpu(), expected, atol=1e-5, rtol=1e-4)
