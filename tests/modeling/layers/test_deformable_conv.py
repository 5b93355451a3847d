"""Modulated deformable convolution: against its definition, sample by sample, and torch's convolution."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from explicit_attention import bilinear

from mask2former.modeling.layers import deformable_conv
from mask2former.modeling.layers.deformable_conv import ModulatedDeformConv, modulated_deform_conv


def draw(height, width, stride, batch=2, groups=2, channels=4, out_channels=3):
    """Return x, offsets of up to three cells, modulation, weight and bias in float64."""
    generator = torch.Generator().manual_seed(0)
    out = [-(-side // stride) for side in (height, width)]

    def rand(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    offsets, modulation = rand(batch, groups, 9, 2, *out) * 6 - 3, rand(batch, groups, 9, *out)
    x, weight = rand(batch, channels, height, width) - 0.5, rand(out_channels, channels, 3, 3) - 0.5
    return [tensor.requires_grad_() for tensor in (x, offsets, modulation, weight, rand(out_channels))]


def explicit(x, offsets, modulation, weight, bias, stride):
    """Compute it as it is defined, with a padding of 1."""
    batch, groups, _, _, rows, columns = offsets.shape
    size = x.shape[1] // groups
    out = []
    for b, i, j in itertools.product(range(batch), range(rows), range(columns)):
        total = bias
        for g, ky, kx in itertools.product(range(groups), range(3), range(3)):
            tap, part = 3 * ky + kx, slice(g * size, (g + 1) * size)
            dy, dx = offsets[b, g, tap, :, i, j]
            row, column = i * stride - 1 + ky + dy, j * stride - 1 + kx + dx
            sample = bilinear(x[b, part].permute(1, 2, 0), column, row) * modulation[b, g, tap, i, j]
            total = total + weight[:, part, ky, kx] @ sample
        out.append(total)
    return torch.stack(out).view(batch, rows, columns, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize("one_row_at_a_time", [False, True])
@pytest.mark.parametrize(("size", "stride"), [((5, 4), 1), ((5, 7), 2), ((6, 3), 2)])
def test_values_and_gradients_are_those_of_the_definition(size, stride, one_row_at_a_time, monkeypatch):
    if one_row_at_a_time:
        monkeypatch.setattr(deformable_conv, "SAMPLES_BYTES", 1)
    inputs = draw(*size, stride)
    expected = explicit(*inputs, stride)
    result = modulated_deform_conv(*inputs, stride=stride, padding=1)
    torch.testing.assert_close(result, expected, atol=1e-12, rtol=1e-12)
    factors = torch.arange(1.0, 1 + result.numel()).view_as(result) / result.numel()
    gradients = [torch.autograd.grad((y * factors).sum(), inputs) for y in (result, expected)]
    torch.testing.assert_close(*gradients, atol=1e-11, rtol=1e-11)
    with torch.no_grad():
        torch.testing.assert_close(modulated_deform_conv(*inputs, stride=stride, padding=1), result)


def test_without_offsets_and_modulation_it_is_a_convolution():
    x, offsets, modulation, weight, bias = draw(5, 7, 2)
    arguments = (torch.zeros_like(offsets), torch.ones_like(modulation), weight, bias)
    result = modulated_deform_conv(x, *arguments, stride=2, padding=1)
    torch.testing.assert_close(result, F.conv2d(x, weight, bias, stride=2, padding=1))


def test_samples_are_kept_neither_whole_nor_for_the_backward_pass(monkeypatch):
    inputs = draw(40, 7, 1, channels=16)
    x, samples, kept = inputs[0], [], []
    limit = 3 * 2 * 7 * 9 * 16 * 8  # three rows: images, columns, taps, channels, bytes
    operator = deformable_conv.ms_deform_attn

    def watch(*arguments):
        samples.append(operator(*arguments))
        return samples[-1]

    monkeypatch.setattr(deformable_conv, "SAMPLES_BYTES", limit)
    monkeypatch.setattr(deformable_conv, "ms_deform_attn", watch)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        result = modulated_deform_conv(*inputs, padding=1)
    assert len(samples) == 14
    assert all(sample.numel() * 8 <= limit for sample in samples)
    assert sum(kept) < 9 * x.numel() / 2
    result.sum().backward()
    assert len(samples) == 28


@pytest.fixture
def module():
    torch.manual_seed(0)
    return ModulatedDeformConv(8, 6, 3, groups=2)


def test_at_the_start_it_is_half_a_convolution(module):
    x, other = torch.randn(2, 2, 8, 5, 4)
    module.bias.data.normal_()
    expected = 0.5 * F.conv2d(x, module.weight, padding=1) + module.bias[:, None, None]
    torch.testing.assert_close(module(x, other), expected)
    bound = 72**-0.5
    assert 0.95 * bound < module.weight.abs().max() <= bound


def test_predicted_channels_are_laid_out_as_in_the_published_code(module):
    channels = torch.randn(54)
    module.conv_offset_mask.bias.data.copy_(channels)
    x = torch.randn(1, 8, 5, 4)
    offsets = torch.empty(1, 2, 9, 2, 5, 4)
    modulation = torch.empty(1, 2, 9, 5, 4)
    for group, tap in itertools.product(range(2), range(9)):
        offsets[0, group, tap, 0] = channels[18 * group + 2 * tap]
        offsets[0, group, tap, 1] = channels[18 * group + 2 * tap + 1]
        modulation[0, group, tap] = channels[36 + 9 * group + tap].sigmoid()
    expected = modulated_deform_conv(x, offsets, modulation, module.weight, module.bias, padding=1)
    torch.testing.assert_close(module(x, x), expected)
    assert {name: list(tensor.shape) for name, tensor in module.state_dict().items()} == {
        "weight": [6, 8, 3, 3],
        "bias": [6],
        "conv_offset_mask.weight": [54, 8, 3, 3],
        "conv_offset_mask.bias": [54],
    }


def test_float32_under_autocast(module):
    torch.nn.init.normal_(module.conv_offset_mask.weight)
    x = torch.randn(2, 8, 5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(x, x), module(x.float(), x))
        assert module(x.bfloat16(), x.bfloat16()).dtype == torch.float32


def test_groups_must_divide_the_channels():
    with pytest.raises(ValueError, match="has 8 groups, which do not divide 12 channels"):
        ModulatedDeformConv(12, 6, 3, groups=8)
