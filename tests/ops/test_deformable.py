"""ms_deform_attn against explicit bilinear sampling in nested loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mask2former.ops import ms_deform_attn

SHAPES = ((3, 4), (2, 2), (1, 1))


def bilinear(image, x, y):
    """image (H, W, D) at x, y in [0, 1]; cell (i, j) is centred at ((j + 0.5) / W, (i + 0.5) / H)."""
    height, width, channels = image.shape
    column, row = x * width - 0.5, y * height - 0.5
    result = torch.zeros(channels, dtype=image.dtype)
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            if 0 <= i < height and 0 <= j < width:
                result += (1 - abs(row - i)) * (1 - abs(column - j)) * image[i, j]
    return result


def slow(value, shapes, locations, weights):
    batch, _, heads, channels = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    result = torch.zeros(batch, queries, heads, channels, dtype=value.dtype)
    for b, q, h in torch.cartesian_prod(*map(torch.arange, (batch, queries, heads))).tolist():
        start = 0
        for level, (height, width) in enumerate(shapes):
            image = value[b, start : start + height * width, h].reshape(height, width, channels)
            start += height * width
            for p in range(points):
                x, y = locations[b, q, h, level, p].tolist()
                result[b, q, h] += weights[b, q, h, level, p] * bilinear(image, x, y)
    return result.flatten(2)


def inputs(shapes, batch=2, queries=3, heads=2, points=2, channels=3, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def rand(*size):
        return torch.rand(size, generator=generator, dtype=dtype)

    value = rand(batch, sum(h * w for h, w in shapes), heads, channels) - 0.5
    locations = rand(batch, queries, heads, len(shapes), points, 2) * 1.6 - 0.3  # some outside
    weights = rand(batch, queries, heads, len(shapes), points)
    return value, locations, weights


sides = st.integers(1, 4)


@settings(max_examples=25)
@given(
    shapes=st.lists(st.tuples(sides, sides), min_size=1, max_size=3).map(tuple),
    batch=st.integers(1, 2),
    queries=st.integers(1, 3),
    heads=st.integers(1, 3),
    points=st.integers(1, 3),
    channels=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_equals_explicit_sampling(shapes, seed, **sizes):
    value, locations, weights = inputs(shapes, seed=seed, **sizes)
    expected = slow(value, shapes, locations, weights)
    torch.testing.assert_close(ms_deform_attn(value, shapes, locations, weights), expected)


def test_float32():
    value, locations, weights = inputs(SHAPES)
    result = ms_deform_attn(value.float(), SHAPES, locations.float(), weights.float())
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), slow(value, SHAPES, locations, weights), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("offset", [-1e6, -2.0, 3.0, 1e6])
def test_far_outside_is_zero_with_zero_gradient(offset):
    value, locations, weights = inputs(SHAPES)
    value.requires_grad_()
    result = ms_deform_attn(value, SHAPES, locations + offset, weights)
    result.sum().backward()
    assert not result.any()
    assert not value.grad.any()


def test_cell_centres_return_the_cells():
    value, _, _ = inputs(((2, 3),), batch=1, heads=1)
    x, y = (torch.arange(3) + 0.5) / 3, (torch.arange(2) + 0.5) / 2
    centres = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(1, 6, 1, 1, 1, 2).double()
    result = ms_deform_attn(value, ((2, 3),), centres, torch.ones(1, 6, 1, 1, 1).double())
    torch.testing.assert_close(result, value.flatten(2))


def test_gradients():
    value, locations, weights = inputs(SHAPES, batch=1, queries=2, channels=2)
    tensors = [t.requires_grad_() for t in (value, locations, weights)]
    assert torch.autograd.gradcheck(lambda v, x, w: ms_deform_attn(v, SHAPES, x, w), tensors)


def test_no_image_and_no_query():
    value, locations, weights = inputs(SHAPES)
    assert ms_deform_attn(value, SHAPES, locations[:, :0], weights[:, :0]).shape == (2, 0, 6)
    assert ms_deform_attn(value[:0], SHAPES, locations[:0], weights[:0]).shape == (0, 3, 6)
