"""Both forms of deformable attention, by every backend that works here, against explicit loops."""

import math

import pytest
import torch
from explicit_attention import BACKENDS, SHAPES, asking_for, draw, draw_fused, explicit
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


def plain(value, shapes, points, weights, reference):
    assert reference is None
    return ms_deform_attn(value, shapes, points, weights)


def fused(value, shapes, points, weights, reference):
    return ms_deform_attn_from_offsets(value, shapes, reference, points, weights)


def compare(function, shapes, tensors, device, dtype=torch.float32, **tolerance):
    """Output and gradients of what is to be differentiated, against the loops in float64."""
    ours = [t.detach().to(device, dtype).requires_grad_() if t is not None else None for t in tensors]
    exact = [t.detach().clone().requires_grad_() if t is not None else None for t in tensors]
    result, expected = function(ours[0], shapes, *ours[1:]), explicit(exact[0], shapes, *exact[1:])
    torch.testing.assert_close(result.cpu().to(torch.float64), expected, **tolerance)
    seed = torch.linspace(-1, 2, expected.numel(), dtype=torch.float64).view_as(expected)
    result.backward(seed.to(device, dtype))
    expected.backward(seed)
    for name, mine, other in zip(("value", "points", "weights", "reference"), ours, exact, strict=True):
        if mine is not None:
            grad = torch.zeros_like(other) if other.grad is None else other.grad
            torch.testing.assert_close(
                mine.grad.cpu().to(torch.float64), grad, msg=lambda m, n=name: f"{n}: {m}", **tolerance
            )


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=40)
@given(**CASES)
def test_plain_equals_the_loops(backend, **sizes):
    with asking_for(backend) as device:
        tensors = (*draw(**sizes), None)
        compare(plain, sizes["shapes"], tensors, device, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=40)
@given(**CASES)
def test_fused_equals_the_loops(backend, **sizes):
    with asking_for(backend) as device:
        compare(fused, sizes["shapes"], draw_fused(**sizes), device, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("form", ["plain", "fused"])
def test_float64_is_exact(form):
    function, tensors = (plain, (*draw(), None)) if form == "plain" else (fused, draw_fused())
    compare(function, SHAPES, tensors, "cpu", torch.float64)


@pytest.mark.parametrize("form", ["plain", "fused"])
def test_gradients_by_finite_differences(form):
    sizes = {"batch": 1, "queries": 2, "channels": 2}
    function, tensors = (plain, draw(**sizes)) if form == "plain" else (fused, draw_fused(**sizes))
    tensors = [tensor.requires_grad_() for tensor in tensors]

    def of_four(value, points, weights, reference=None):
        return function(value, SHAPES, points, weights, reference)

    assert torch.autograd.gradcheck(of_four, tensors)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["plain", "fused"])
def test_sizes_of_a_real_model(backend, form):
    with asking_for(backend) as device:
        function, tensors = (plain, (*draw(**WIDE), None)) if form == "plain" else (fused, draw_fused(**WIDE))
        compare(function, WIDE["shapes"], tensors, device, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("levels", [1, len(SHAPES)])
def test_reference_points_may_be_shared(backend, images, levels):
    value, offsets, logits, reference = draw_fused()
    with asking_for(backend) as device:
        tensors = (value, offsets, logits, reference[:images, :, :levels])
        compare(fused, SHAPES, tensors, device, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_of_16_bits_are_summed_in_float32(backend, dtype):
    """The result is the exact one of the rounded values, rounded once; so is the gradient of the values."""
    value, offsets, logits, reference = draw_fused(**WIDE)
    rounded = [value.to(dtype), *(t.float() for t in (reference, offsets, logits))]
    exact = [t.double().requires_grad_() for t in rounded]
    expected = ms_deform_attn_from_offsets(exact[0], WIDE["shapes"], *exact[1:])
    seed = torch.linspace(-1, 2, expected.numel()).view_as(expected).to(dtype)
    expected.backward(seed.double())
    with asking_for(backend) as device:
        ours = [t.to(device).requires_grad_() for t in rounded]
        result = ms_deform_attn_from_offsets(ours[0], WIDE["shapes"], *ours[1:])
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
    value, offsets, logits, reference = (t.bfloat16() for t in draw_fused())
    with asking_for(backend) as device:
        few = [t.to(device) for t in (reference, offsets, logits)]
        for t in few:
            t.requires_grad_()
        result = ms_deform_attn_from_offsets(value.to(device), SHAPES, *few)
        result.sum().backward()
        expected = explicit(*(value.double(), SHAPES, offsets.double(), logits.double(), reference.double()))
    torch.testing.assert_close(result.cpu().double(), expected, rtol=2**-8, atol=1e-5)
    assert all(t.grad.dtype == torch.bfloat16 for t in few)


NOWHERE = [math.nan, math.inf, -math.inf, 3e38, -3e38, 2.0**31, -(2.0**31), 2.0**63, 1e6, -1e6]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("place", NOWHERE)
@pytest.mark.parametrize("form", ["plain", "fused"])
def test_a_non_finite_point_contributes_nothing(backend, place, form):
    """Alone it gives zero and zero gradients; among others it leaves theirs as they are."""
    value, points, weights, *reference = (t.float() for t in (draw if form == "plain" else draw_fused)())
    points[:, 0] = place  # all points of the first query
    points[:, 1, :, :, 1, 0] = place  # the second point of the others, in x; then in y
    points[:, 2, :, :, 1, 1] = place
    with asking_for(backend) as device:
        tensors = [t.to(device).requires_grad_() for t in (value, points, weights, *reference)]
        function = plain if form == "plain" else fused
        result = function(tensors[0], SHAPES, *tensors[1:3], tensors[3] if reference else None)
        result.sum().backward()
    expected = explicit(value, SHAPES, points, weights, *reference)
    torch.testing.assert_close(result.cpu(), expected, atol=1e-5, rtol=1e-4)
    assert not result[:, 0].any() and not tensors[1].grad[:, 0].any()
    assert all(t.grad.isfinite().all() for t in tensors)


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
def test_cell_centers_return_the_cells(backend):
    value, _, _ = draw(((2, 3),), batch=1, heads=1)
    x, y = (torch.arange(3) + 0.5) / 3, (torch.arange(2) + 0.5) / 2
    centers = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(1, 6, 1, 1, 1, 2)
    with asking_for(backend) as device:
        tensors = (
            value.float().to(device),
            ((2, 3),),
            centers.to(device),
            torch.ones(1, 6, 1, 1, 1).to(device),
        )
        torch.testing.assert_close(ms_deform_attn(*tensors).cpu(), value.float().flatten(2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_huge_logits_choose_one_point(backend):
    value, offsets, logits, reference = (t.float() for t in draw_fused())
    logits *= 1e4  # their exponentials overflow
    with asking_for(backend) as device:
        tensors = [t.to(device) for t in (reference, offsets, logits)]
        result = ms_deform_attn_from_offsets(value.to(device), SHAPES, *tensors)
    chosen = torch.nn.functional.one_hot(logits.flatten(3).argmax(-1), logits[0, 0, 0].numel())
    locations = reference[:, :, None, :, None] + offsets / torch.tensor([[4, 3], [2, 2], [1, 1]])[:, None]
    expected = explicit(value, SHAPES, locations, chosen.view_as(logits).float())
    torch.testing.assert_close(result.cpu(), expected, atol=1e-5, rtol=1e-4)
