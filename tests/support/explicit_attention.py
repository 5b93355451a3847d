"""Deformable attention as it is defined, point by point and corner by corner; and cases to compare on."""

import itertools
import math
from contextlib import contextmanager

import pytest
import torch

from mask2former.ops import backends

SHAPES = ((3, 4), (2, 2), (1, 1))
BACKENDS = [*backends.BACKENDS]


@contextmanager
def asking_for(name):
    """MASK2FORMER_OPS is `name` meanwhile; yields the device to compute on, or skips the test."""
    reason = backends.BACKENDS[name].why_unavailable()
    if reason:
        pytest.skip(f"backend {name}: {reason}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(backends.VARIABLE, name)
        forget_choices()
        yield torch.device("cuda" if name == "cuda" else "cpu")
    forget_choices()


def forget_choices():
    backends.asked_for.cache_clear()
    backends.backend_for.cache_clear()


def bilinear(image, column, row):
    """image (H, W, D) between its cells; cell (i, j) is at row i and column j, and outside all is zero."""
    height, width, channels = image.shape
    result = image.new_zeros(channels)
    at_column, at_row = column.item(), row.item()
    if not (math.isfinite(at_column) and math.isfinite(at_row)):
        return result
    for i in (math.floor(at_row), math.floor(at_row) + 1):
        for j in (math.floor(at_column), math.floor(at_column) + 1):
            if 0 <= i < height and 0 <= j < width:
                result = result + (1 - abs(row - i)) * (1 - abs(column - j)) * image[i, j]
    return result


def explicit(value, shapes, points, weights, reference=None):
    """Both forms, the fused one where there is a reference; differentiable."""
    batch, _, heads, channels = value.shape
    queries, levels, count = points.shape[1], points.shape[3], points.shape[4]
    if reference is not None:
        weights = weights.flatten(3).softmax(-1).view_as(weights)
        reference = reference.expand(batch, queries, levels, 2)
    maps = value.split([height * width for height, width in shapes], dim=1)
    result = value.new_zeros(batch, queries, heads, channels)
    for b, q, h, l, p in itertools.product(*map(range, (batch, queries, heads, levels, count))):
        height, width = shapes[l]
        x, y = points[b, q, h, l, p]
        if reference is None:
            column, row = x * width - 0.5, y * height - 0.5
        else:
            column = reference[b, q, l, 0] * width + x - 0.5
            row = reference[b, q, l, 1] * height + y - 0.5
        sample = bilinear(maps[l][b, :, h].view(height, width, channels), column, row)
        result[b, q, h] += weights[b, q, h, l, p] * sample
    return result.flatten(2)


def draw(shapes=SHAPES, batch=2, queries=3, heads=2, points=2, channels=3, seed=0):
    """Values, locations (some outside) and probabilities of the plain form, float64."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*size):
        return torch.rand(size, generator=generator, dtype=torch.float64)

    samples = (batch, queries, heads, len(shapes), points)
    value = rand(batch, sum(h * w for h, w in shapes), heads, channels) - 0.5
    return value, rand(*samples, 2) * 1.6 - 0.3, rand(*samples)


def draw_fused(shapes=SHAPES, batch=2, queries=3, heads=2, points=2, channels=3, seed=0):
    """Values, offsets, logits and references (B, Lq, L, 2) of the fused form, float64."""
    value, locations, weights = draw(shapes, batch, queries, heads, points, channels, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    reference = torch.rand(batch, queries, len(shapes), 2, generator=generator, dtype=torch.float64)
    return value, 6 * locations - 3, 4 * weights - 2, reference
