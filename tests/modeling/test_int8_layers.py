"""Layers in int8 against the same arithmetic in floats, and the model that they leave."""

import pytest
import torch
from tiny_checkpoint import tiny_config
from torch import nn
from torch.nn import functional as F

from mask2former.engine.build import build_model
from mask2former.modeling.int8 import (
    Int8Conv2d,
    Int8Linear,
    Quantization,
    candidates,
    quantize_,
    require_int8,
)
from mask2former.modeling.layers.conv import ConvNorm
from mask2former.modeling.precision import set_precision

needs_vnni = pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="int8 needs AVX512 VNNI")
INPUTS, OUTPUTS = Quantization.of_range(-2.5, 3.0), Quantization.of_range(0.0, 4.0)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model(tiny_config()).eval()


def images():
    return torch.randn((1, 3, 64, 96), generator=torch.Generator().manual_seed(1))


def rounded(x, quantization):
    """The floats that the 8 bits of x stand for, by the definition of quantization."""
    steps = torch.round(x.double() / quantization.scale) + quantization.zero_point
    return (steps.clamp(0, 255) - quantization.zero_point) * quantization.scale


def rounded_weight(weight):
    """A weight rounded to 127 steps of either sign for each output channel."""
    scales = weight.double().flatten(1).abs().amax(1).view(-1, *[1] * (weight.dim() - 1)) / 127
    return torch.round(weight.double() / scales) * scales


def dequantized(x8, quantization):
    return (x8.double() - quantization.zero_point) * quantization.scale


def test_zero_is_exact_and_values_outside_of_the_range_are_cut_off():
    assert INPUTS(torch.tensor([[0.0, -9.0, 9.0]])).tolist() == [[INPUTS.zero_point, 0, 255]]
    assert OUTPUTS.zero_point == 0


@pytest.mark.parametrize("low, high", [(-2.5, 3.0), (0.0, 4.0), (0.5, 4.0), (-3.0, -1.0), (0.0, 0.0)])
def test_quantized_values_are_the_nearest(low, high):
    quantization = Quantization.of_range(low, high)
    x = torch.empty(300, 7).uniform_(low, high)
    error = dequantized(quantization(x), quantization) - x
    assert error.abs().max() <= quantization.scale * 0.5001
    half = x.bfloat16()
    assert torch.equal(quantization(half), quantization(half.float()))


@needs_vnni
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_multiplies_the_rounded_values(bias):
    layer = nn.Linear(24, 10, bias=bias)
    x = torch.randn(2, 5, 24)
    expected = F.linear(
        rounded(x, INPUTS), rounded_weight(layer.weight), layer.bias.double() if bias else None
    )
    torch.testing.assert_close(Int8Linear(layer, INPUTS)(x).double(), expected, atol=1e-4, rtol=1e-4)


@needs_vnni
def test_a_layer_before_a_relu_writes_what_the_next_reads():
    first, second = nn.Linear(24, 32), nn.Linear(32, 8)
    x = torch.randn(6, 24)
    hidden = F.linear(rounded(x, INPUTS), rounded_weight(first.weight), first.bias.double())
    hidden8 = Int8Linear(first, INPUTS, OUTPUTS)(x)
    assert hidden8.dtype == torch.uint8
    assert (
        dequantized(hidden8, OUTPUTS) - rounded(hidden.relu(), OUTPUTS)
    ).abs().max() < 1.01 * OUTPUTS.scale
    expected = F.linear(dequantized(hidden8, OUTPUTS), rounded_weight(second.weight), second.bias.double())
    found = Int8Linear(second, OUTPUTS)(F.relu(hidden8))
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)


def trained_norm(norm):
    for values in (norm.running_mean, norm.weight, norm.bias):
        nn.init.uniform_(values, -1, 2)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    return norm.eval()


@needs_vnni
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(
    "geometry",
    [
        {"kernel_size": 1},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": 3, "padding": 2, "dilation": 2, "groups": 4},
    ],
    ids=["pointwise", "strided", "grouped"],
)
def test_a_convolution_multiplies_the_rounded_values_and_has_its_batch_norm_inside(geometry, last):
    norm = trained_norm(nn.BatchNorm2d(12))
    layer = ConvNorm(8, 12, bias=False, norm=norm, activation=F.relu_, **geometry)
    x = torch.randn(2, 8, 9, 11)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    gain = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
    weight = rounded_weight(layer.weight.detach() * gain.view(-1, 1, 1, 1))
    bias = norm.bias - norm.running_mean * gain
    options = {name: geometry[name] for name in geometry if name != "kernel_size"}
    expected = F.conv2d(rounded(x, INPUTS), weight, bias.double(), **options).relu()
    torch.testing.assert_close(Int8Conv2d(layer, INPUTS)(x).double(), expected, atol=1e-4, rtol=1e-4)


@needs_vnni
def test_other_norms_follow_the_convolution():
    layer = ConvNorm(8, 32, 1, norm=nn.GroupNorm(4, 32), activation=F.relu_)
    x = torch.randn(1, 8, 6, 5)
    expected = F.relu(
        layer.norm.double()(F.conv2d(rounded(x, INPUTS), rounded_weight(layer.weight), layer.bias.double()))
    )
    layer.norm.float()
    torch.testing.assert_close(Int8Conv2d(layer, INPUTS)(x).double(), expected, atol=1e-4, rtol=1e-3)


@needs_vnni
def test_all_layers_but_those_of_sampling_are_replaced(model):
    names = [name for name, _ in candidates(model)]
    assert quantize_(model, [images()]) == len(names) > 20
    for name in names:
        assert isinstance(model.get_submodule(name), Int8Linear | Int8Conv2d)
    attention = model.sem_seg_head.pixel_decoder.transformer.encoder.layers[0].self_attn
    assert type(attention.sampling_offsets) is type(attention.attention_weights) is nn.Linear
    assert not any(isinstance(m, Int8Linear) for m in model.sem_seg_head.predictor.modules())


@needs_vnni
@torch.no_grad()
@pytest.mark.parametrize("others", ["fp32", "bf16"])
def test_results_are_close_to_float32(model, others):
    exact = model.network(images())
    quantize_(model, [images()])
    set_precision(model, others)
    with model._autocast():
        features = model.network(images()).mask_features
    error = (features.float() - exact.mask_features).abs().mean() / exact.mask_features.abs().mean()
    assert 1e-3 < error < 0.1
    assert features.dtype == model.precision


@needs_vnni
def test_images_of_a_batch_and_of_any_size_are_predicted(model):
    quantize_(model, [images()])
    inputs = [{"image": torch.randint(0, 256, (3, side, 50), dtype=torch.uint8)} for side in (33, 70)]
    assert [result["sem_seg"].shape[1:] for result in model.predict(inputs)] == [(33, 50), (70, 50)]


def test_int8_is_refused_where_it_cannot_be_had(model, monkeypatch):
    with pytest.raises(ValueError, match=r"for prediction: call model\.eval\(\)"):
        quantize_(model.train(), [])
    with pytest.raises(ValueError, match=r"is for MODEL\.DEVICE cpu, not meta"):
        require_int8(model.eval().to("meta"))
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(ValueError, match="needs a processor with AVX512 VNNI; type fp32 or bf16"):
        quantize_(model.to_empty(device="cpu"), [])
