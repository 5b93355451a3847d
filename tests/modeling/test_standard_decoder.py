"""MaskFormer's transformer decoder against torch's own transformer."""

import pytest
import torch
from torch import nn

from mask2former.modeling.layers.position import sine_position
from mask2former.modeling.transformer_decoder import StandardTransformerDecoder

WIDTH, HEADS, QUERIES, CLASSES, MASK_DIM = 16, 4, 6, 3, 8


def build(**changes):
    torch.manual_seed(0)
    counts = {"num_classes": CLASSES, "num_queries": QUERIES, "num_heads": HEADS, "num_layers": 3}
    widths = {"in_channels": WIDTH, "hidden_dim": WIDTH, "dim_feedforward": 24, "mask_dim": MASK_DIM}
    options = {"dropout": 0.0, "num_encoder_layers": 0, "pre_norm": False, "enforce_input_proj": False}
    return StandardTransformerDecoder(**(counts | widths | options | changes))


def draw_inputs(channels=WIDTH):
    generator = torch.Generator().manual_seed(1)
    memory = torch.randn(2, channels, 4, 5, generator=generator)
    return [memory], torch.randn(2, MASK_DIM, 16, 20, generator=generator)


def attend(attention, query, key, value):
    reference = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    reference.load_state_dict(attention.state_dict())
    return reference(query, key, value)[0]


def slow_update(layer, x, updates):
    """Apply residual updates, each with its norm after the sum or before the update."""
    for norm, update in updates:
        x = x + update(norm(x)) if layer.pre_norm else norm(x + update(x))
    return x


def slow_encoder(encoder, cells, position):
    for layer in encoder.layers:
        updates = [
            (layer.norm1, lambda x, at=layer: attend(at.self_attn, x + position, x + position, x)),
            (layer.norm2, lambda x, at=layer: at.linear2(at.linear1(x).relu())),
        ]
        cells = slow_update(layer, cells, updates)
    return cells if encoder.norm is None else encoder.norm(cells)


def slow_layers(decoder, cells, position):
    """Return the queries after each layer, not yet normed for the heads."""
    places, keys = decoder.query_embed.weight.expand(2, -1, -1), cells + position
    x = torch.zeros(2, QUERIES, WIDTH)
    for layer in decoder.transformer.decoder.layers:
        updates = [
            (layer.norm1, lambda x, at=layer: attend(at.self_attn, x + places, x + places, x)),
            (layer.norm2, lambda x, at=layer: attend(at.multihead_attn, x + places, keys, cells)),
            (layer.norm3, lambda x, at=layer: at.linear2(at.linear1(x).relu())),
        ]
        x = slow_update(layer, x, updates)
        yield x


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("encoder_layers", [0, 2])
def test_equals_torchs_attention_layer_by_layer(encoder_layers, pre_norm):
    decoder = build(num_encoder_layers=encoder_layers, pre_norm=pre_norm)
    for norm in (module for module in decoder.modules() if isinstance(module, nn.LayerNorm)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    assert ("transformer.encoder.norm.weight" in decoder.state_dict()) == pre_norm
    (memory,), mask_features = draw_inputs()
    predictions = decoder([memory], mask_features)
    position = sine_position((4, 5), WIDTH)
    cells = slow_encoder(decoder.transformer.encoder, memory.flatten(2).transpose(1, 2), position)
    expected = list(slow_layers(decoder, cells, position))
    assert len(predictions.layers) == len(expected) == 3
    for prediction, x in zip(predictions.layers, expected, strict=True):
        normed = decoder.transformer.decoder.norm(x)
        torch.testing.assert_close(prediction.class_logits, decoder.class_embed(normed), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(prediction.mask_embed, decoder.mask_embed(normed), atol=1e-5, rtol=1e-4)


def test_activation_checkpointing_of_the_encoder_changes_nothing():
    gradients = []
    for checkpointing in (False, True):
        decoder = build(num_encoder_layers=2, activation_checkpointing=checkpointing)
        decoder(*draw_inputs()).layers[-1].class_logits.square().sum().backward()
        gradients.append([p.grad for p in decoder.transformer.encoder.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def test_masks_alone_have_no_class_logits():
    decoder = build(num_classes=None)
    assert not any(name.startswith("class_embed") for name in decoder.state_dict())
    assert decoder(*draw_inputs()).layers[-1].class_logits.shape == (2, QUERIES, 0)


@pytest.mark.parametrize(
    ("channels", "enforce", "names"), [(WIDTH, False, 0), (WIDTH, True, 2), (12, False, 2)]
)
def test_the_map_is_projected_if_its_width_differs(channels, enforce, names):
    decoder = build(in_channels=channels, enforce_input_proj=enforce)
    assert sum(name.startswith("input_proj") for name in decoder.state_dict()) == names
    assert decoder(*draw_inputs(channels)).mask_logits().shape == (2, QUERIES, 16, 20)


def test_dropout_acts_in_training_alone():
    decoder = build(dropout=0.5)
    inputs = draw_inputs()
    first, second = (decoder(*inputs).layers[-1].class_logits for _ in range(2))
    assert not torch.equal(first, second)
    decoder.eval()
    first, second = (decoder(*inputs).layers[-1].class_logits for _ in range(2))
    assert torch.equal(first, second)
