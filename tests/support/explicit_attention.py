"""Deformable attention as it is defined, point by point and corner by corner; and cases to compare on."""

import itertools
import math
from contextlib import contextmanager

import pytest
import torch

from mask2former.ops import backends, ms_deform_attn, ms_deform_attn_from_offsets

SHAPES = ((3, 4), (2, 2), (1, 1))
BACKENDS = [*backends.BACKENDS]
FORMS = ["plain", "fused"]


@contextmanager
def asking_for(name):
    """Set MASK2FORMER_OPS to `name` and yield the device to compute on, or skip the test."""
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
    """Interpolate image (H, W, D), which is zero outside; cell (i, j) is at row i and column j."""
    height, width, channels = image.shape
    result = image.new_zeros(channels)
    if not (row.isfinite() and column.isfinite()):
        return result
    top, left = math.floor(row.item()), math.floor(column.item())
    for i, j in itertools.product((top, top + 1), (left, left + 1)):
        if 0 <= i < height and 0 <= j < width:
            result = result + (1 - abs(row - i)) * (1 - abs(column - j)) * image[i, j]
    return result


def explicit(value, shapes, points, weights, reference=None):
    """Compute the plain form, or with a reference the fused one; differentiable."""
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


def draw(form, shapes=SHAPES, batch=2, queries=3, heads=2, points=2, channels=3, seed=0):
    """Return value, points (some outside), weights and reference (B, Lq, L, 2; plain form: None), float64."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*size):
        return torch.rand(size, generator=generator, dtype=torch.float64)

    samples = (batch, queries, heads, len(shapes), points)
    value = rand(batch, sum(h * w for h, w in shapes), heads, channels) - 0.5
    locations, weights = rand(*samples, 2) * 1.6 - 0.3, rand(*samples)
    if form == "plain":
        return value, locations, weights, None
    generator.manual_seed(seed + 1)
    return value, 6 * locations - 3, 4 * weights - 2, rand(batch, queries, len(shapes), 2)


def attend(value, shapes, points, weights, reference):
    """Call the operator in the form that has this reference."""
    if reference is None:
        return ms_deform_attn(value, shapes, points, weights)
    return ms_deform_attn_from_offsets(value, shapes, reference, points, weights)


def convert(tensors, *arguments):
    """Return tensors, of which the reference may be None, on another device or of another type."""
    return [None if tensor is None else tensor.to(*arguments) for tensor in tensors]
