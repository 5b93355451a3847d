"""The pixel decoder: shapes and order, its parts against plain torch, training, and errors."""

import pytest
import torch
import torch.nn.functional as F

from mask2former.modeling.layers import chunking
from mask2former.modeling.layers.attention import map_sequence
from mask2former.modeling.pixel_decoder import MSDeformAttnPixelDecoder
from mask2former.structures import ShapeSpec

SHAPES = {f"res{i}": ShapeSpec(4 * i, 2**i) for i in (2, 3, 4, 5)}
COARSE = ["res3", "res4", "res5"]


def build(**changes):
    torch.manual_seed(0)
    features = {"input_shape": SHAPES, "transformer_in_features": COARSE}
    sizes = {"conv_dim": 32, "mask_dim": 12, "num_layers": 1, "num_heads": 4, "dim_feedforward": 16}
    options = {"norm": "GN", "dropout": 0.0, "activation_checkpointing": False}
    return MSDeformAttnPixelDecoder(**(features | sizes | options | changes))


def draw_features():
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(2, shape.channels, 64 // shape.stride, 96 // shape.stride, generator=generator)
        for name, shape in SHAPES.items()
    }


def randomize(decoder):
    """Make offsets and attention weights depend on the query, which they do not at the start."""
    for layer in decoder.transformer.encoder.layers:
        torch.nn.init.normal_(layer.self_attn.sampling_offsets.weight, std=0.1)
        torch.nn.init.normal_(layer.self_attn.attention_weights.weight, std=0.1)
    return decoder


@pytest.mark.parametrize("norm", ["GN", ""])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_results_without_gradients_are_the_same_in_the_layout_of_the_finest_map(norm, layout, monkeypatch):
    monkeypatch.setattr(chunking, "CHUNK_BYTES", 5000)
    decoder = randomize(build(num_layers=2, norm=norm))
    features = {name: x.contiguous(memory_format=layout) for name, x in draw_features().items()}
    expected = decoder(features)
    before = {name: x.clone() for name, x in features.items()}
    with torch.no_grad():
        found = decoder(features)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert found[0].is_contiguous(memory_format=layout)  # mixed layouts cost more than the arithmetic
    assert all(torch.equal(x, before[name]) for name, x in features.items())


def test_encoder_changes_no_argument_in_place():
    x = torch.randn(2, 38, 32)
    before = x.clone()
    maps = map_sequence(((2, 3), (3, 4), (4, 5)), x.device)
    with torch.no_grad():
        build().transformer.encoder(x, torch.randn(38, 32), maps)
    assert torch.equal(x, before)


def test_shapes_and_order():
    decoder = build()
    mask_features, memory = decoder(draw_features())
    assert mask_features.shape == (2, 12, 16, 24)
    assert [tuple(x.shape) for x in memory] == [(2, 32, 2, 3), (2, 32, 4, 6), (2, 32, 8, 12)]
    assert decoder.memory_shape == [ShapeSpec(32, 32), ShapeSpec(32, 16), ShapeSpec(32, 8)]


def test_without_layers_the_rest_is_plain_torch():
    decoder, features = build(num_layers=0), draw_features()
    mask_features, memory = decoder(features)
    for i, name in enumerate(("res5", "res4", "res3")):
        convolution, norm = decoder.input_proj[i]
        projected = F.conv2d(features[name], convolution.weight, convolution.bias)
        expected = F.group_norm(projected, 32, norm.weight, norm.bias, 1e-5)
        torch.testing.assert_close(memory[i], expected)
    fine, layer = decoder.adapter_1, decoder.layer_1
    enlarged = F.interpolate(memory[2], scale_factor=2, mode="bilinear", align_corners=False)
    x = F.group_norm(F.conv2d(features["res2"], fine.weight), 32, fine.norm.weight, fine.norm.bias) + enlarged
    x = F.group_norm(F.conv2d(x, layer.weight, padding=1), 32, layer.norm.weight, layer.norm.bias).relu()
    expected = F.conv2d(x, decoder.mask_features.weight, decoder.mask_features.bias)
    torch.testing.assert_close(mask_features, expected)


def test_layer_is_post_norm_with_positions_in_the_query_alone():
    decoder, features = randomize(build()), draw_features()
    (layer,) = decoder.transformer.encoder.layers
    seen = {}
    layer.self_attn.register_forward_pre_hook(lambda _, args: seen.update(query=args[0], value=args[1]))
    layer.self_attn.register_forward_hook(lambda _, args, output: seen.update(attended=output))
    _, memory = decoder(features)
    positions = seen["query"] - seen["value"]
    torch.testing.assert_close(positions[0], positions[1], atol=1e-5, rtol=0)
    x = F.layer_norm(seen["value"] + seen["attended"], (32,), layer.norm1.weight, layer.norm1.bias)
    hidden = F.linear(x, layer.linear1.weight, layer.linear1.bias).relu()
    x = x + F.linear(hidden, layer.linear2.weight, layer.linear2.bias)
    expected = F.layer_norm(x, (32,), layer.norm2.weight, layer.norm2.bias)
    torch.testing.assert_close(torch.cat([m.flatten(2) for m in memory], 2).transpose(1, 2), expected)


def test_level_vectors_go_from_coarse_to_fine():
    decoder, features = build(), draw_features()
    (layer,) = decoder.transformer.encoder.layers
    queries = []
    layer.self_attn.register_forward_pre_hook(lambda _, args: queries.append(args[0]))
    decoder(features)
    with torch.no_grad():
        decoder.transformer.level_embed[0] += 1
    decoder(features)
    moved = (queries[1] - queries[0]).mean((0, 2))
    torch.testing.assert_close(moved, torch.tensor([1.0] * 2 * 3 + [0.0] * (4 * 6 + 8 * 12)))


def test_names_in_any_order():
    features = draw_features()
    expected = randomize(build())(features)[0]
    other = randomize(build(transformer_in_features=COARSE[::-1], input_shape=dict(reversed(SHAPES.items()))))
    torch.testing.assert_close(other(features)[0], expected)


def test_float32_under_autocast():
    decoder, features = randomize(build()), draw_features()
    expected, _ = decoder(features)
    with torch.autocast("cpu", torch.bfloat16):
        result, memory = decoder(features)
        half, _ = decoder({name: x.bfloat16() for name, x in features.items()})
    assert torch.equal(result, expected)
    assert {half.dtype, *(x.dtype for x in memory)} == {torch.float32}


def gradients(decoder, dtype):
    features = {name: x.requires_grad_() for name, x in draw_features().items()}
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        result, memory = decoder(features)
    generator = torch.Generator().manual_seed(2)
    outputs = [x.float() for x in (result, *memory)]
    torch.stack([(x * torch.rand(x.shape, generator=generator)).sum() for x in outputs]).sum().backward()
    named = {**dict(decoder.named_parameters()), **features}
    found = {name: x.grad.clone() for name, x in named.items()}
    decoder.zero_grad()
    return result, found


def test_products_alone_follow_autocast_in_training_if_asked_to():
    decoder = randomize(build(autocast_in_training=True))
    expected, exact = gradients(decoder, torch.float32)
    result, half = gradients(decoder, torch.bfloat16)
    assert result.dtype == torch.bfloat16
    assert 1e-4 < (result.float() - expected).norm() / expected.norm() < 0.02
    norms = {name: grad.norm() for name, grad in exact.items() if grad.norm() > 1e-3}
    errors = {name: ((half[name] - exact[name]).norm() / norm).item() for name, norm in norms.items()}
    assert max(errors.values()) < 0.1, errors


def test_dropout_in_training_alone():
    decoder, features = build(dropout=0.5), draw_features()
    assert not torch.allclose(decoder(features)[0], decoder(features)[0])
    decoder.eval()
    assert torch.equal(decoder(features)[0], decoder(features)[0])


def test_initial_values():
    decoder = build(conv_dim=256, num_heads=8)
    assert 0.9 < decoder.transformer.level_embed.std() < 1.1
    (layer,) = decoder.transformer.encoder.layers
    xavier = {layer.linear1.weight: 256 + 16, layer.self_attn.value_proj.weight: 512}
    for weight, fans in xavier.items():
        bound = (6 / fans) ** 0.5
        assert 0.98 * bound < weight.abs().max() <= bound
    for convolution in (decoder.adapter_1, decoder.layer_1, decoder.mask_features):
        fan_in = convolution.weight[0].numel()
        assert 0.98 * (3 / fan_in) ** 0.5 < convolution.weight.abs().max() <= (3 / fan_in) ** 0.5
        assert convolution.weight.var().item() == pytest.approx(1 / fan_in, rel=0.05)
    assert not decoder.mask_features.bias.any()


def test_without_norm_the_convolutions_have_a_bias():
    names = {name for name in build(norm="").state_dict() if name.startswith(("adapter_1", "layer_1"))}
    assert names == {"adapter_1.weight", "adapter_1.bias", "layer_1.weight", "layer_1.bias"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transformer_in_features": []}, "IN_FEATURES is .*must be some of"),
        ({"transformer_in_features": ["res3", "res4", "p6"]}, "IN_FEATURES is .*p6.*must be some of"),
        ({"transformer_in_features": ["res4", "res5"]}, "all but the finest"),
        ({"transformer_in_features": ["res2", "res3", "res4", "res5"]}, "all but the finest"),
        ({"num_heads": 5}, "32 cannot be shared by 5 attention heads"),
    ],
)
def test_wrong_values_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)
