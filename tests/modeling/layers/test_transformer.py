"""Encoder layers against torch's own, and where they have dropout."""

import pytest
import torch
from torch import nn

from mask2former.modeling.layers.transformer import TransformerEncoder, TransformerEncoderLayer

WIDTH = 16


def build_layer(**changes):
    torch.manual_seed(0)
    options = {"width": WIDTH, "num_heads": 4, "dim_feedforward": 24, "dropout": 0.0, "pre_norm": False}
    return TransformerEncoderLayer(**(options | changes))


def build_encoder(**changes):
    torch.manual_seed(0)
    sizes = {"num_layers": 2, "width": WIDTH, "num_heads": 4, "dim_feedforward": 24}
    options = {"dropout": 0.0, "pre_norm": False, "activation_checkpointing": False}
    return TransformerEncoder(**(sizes | options | changes))


@pytest.fixture
def x():
    return torch.randn(2, 7, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("pre_norm", [False, True])
def test_without_positions_a_layer_is_that_of_torch(x, pre_norm):
    layer = build_layer(pre_norm=pre_norm)
    reference = nn.TransformerEncoderLayer(WIDTH, 4, 24, dropout=0.0, batch_first=True, norm_first=pre_norm)
    reference.load_state_dict(layer.state_dict())
    result, expected = layer(x, torch.zeros(7, WIDTH)), reference(x)
    torch.testing.assert_close(result, expected)
    result.square().sum().backward()
    expected.square().sum().backward()
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(layer.get_parameter(name).grad, parameter.grad, msg=name)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_positions_are_added_to_queries_and_keys_alone(x, pre_norm):
    layer, seen = build_layer(pre_norm=pre_norm), {}
    layer.self_attn.register_forward_pre_hook(lambda _, args: seen.update(q=args[0], k=args[1], v=args[2]))
    position = torch.randn(7, WIDTH)
    layer(x, position)
    tokens = layer.norm1(x) if pre_norm else x
    torch.testing.assert_close(seen["v"], tokens)
    torch.testing.assert_close(seen["q"], tokens + position)
    torch.testing.assert_close(seen["k"], tokens + position)


def test_both_updates_have_dropout(x):
    layer = build_layer(dropout=1.0)
    torch.testing.assert_close(layer(x, x[0]), layer.norm2(layer.norm1(x)))


def test_attention_and_feed_forward_network_have_dropout(x):
    layer = build_layer(dropout=0.5)
    layer.dropout = nn.Identity()  # of the updates
    attended, same = (layer.attend_to_itself(x, x[0]) for _ in range(2))
    assert not torch.allclose(attended, same)
    layer = build_layer(dropout=1.0)
    torch.testing.assert_close(layer.feed_forward(x), layer.linear2.bias.expand(2, 7, -1))


def test_no_dropout_in_evaluation(x):
    assert torch.equal(build_layer(dropout=0.5).eval()(x, x[0]), build_layer().eval()(x, x[0]))


def test_an_encoder_applies_its_layers_and_with_pre_norm_a_last_norm(x):
    for pre_norm in (False, True):
        encoder = build_encoder(pre_norm=pre_norm)
        expected = encoder.layers[1](encoder.layers[0](x, x[0]), x[0])
        torch.testing.assert_close(encoder(x, x[0]), encoder.norm(expected) if pre_norm else expected)
        assert ("norm.weight" in encoder.state_dict()) == pre_norm


def test_activation_checkpointing_changes_no_gradient(x):
    gradients = []
    for checkpointing in (False, True):
        encoder = build_encoder(activation_checkpointing=checkpointing, dropout=0.3)
        torch.manual_seed(2)
        encoder(x, x[0]).square().sum().backward()
        gradients.append([parameter.grad for parameter in encoder.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_initial_values():
    layer = build_layer(width=256, num_heads=8, dim_feedforward=512)
    for linear in (layer.linear1, layer.linear2):
        bound = (6 / (256 + 512)) ** 0.5
        assert 0.98 * bound < linear.weight.abs().max() <= bound
