"""Attention against torch's own module, and deformable attention in cases worked out by hand."""

import pytest
import torch
from torch import nn

from mask2former.modeling.layers.attention import MSDeformAttn, MultiHeadAttention, map_sequence
from mask2former.ops import ms_deform_attn

WIDTH, HEADS = 16, 4


@pytest.fixture
def attention():
    torch.manual_seed(0)
    return MultiHeadAttention(WIDTH, HEADS)


def draw_blocked(batch, queries, keys):
    blocked = torch.rand(batch, queries, keys) < 0.6
    blocked[:, :, 0] = False  # each query keeps a key
    return blocked


@pytest.fixture
def reference(attention):
    """Return torch's module with the same weights, which have the same names."""
    module = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    module.load_state_dict(attention.state_dict())
    return module


@pytest.mark.parametrize("masked", [False, True])
def test_results_and_gradients_are_those_of_torch(attention, reference, masked):
    query, key, value = torch.randn(2, 5, WIDTH), torch.randn(2, 7, WIDTH), torch.randn(2, 7, WIDTH)
    blocked = draw_blocked(2, 5, 7) if masked else None
    mask = blocked.repeat_interleave(HEADS, 0) if masked else None
    expected, _ = reference(query, key, value, attn_mask=mask)
    result = attention(query, key, value, blocked)
    torch.testing.assert_close(result, expected)
    result.square().sum().backward()
    expected.square().sum().backward()
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(attention.get_parameter(name).grad, parameter.grad, msg=name)


def test_blocked_keys_have_no_influence(attention):
    query, key, value = torch.randn(1, 2, WIDTH), torch.randn(1, 3, WIDTH), torch.randn(1, 3, WIDTH)
    blocked = torch.tensor([[[False, True, False], [False, False, True]]])
    before = attention(query, key, value, blocked)
    value[:, 1] += 100
    after = attention(query, key, value, blocked)
    torch.testing.assert_close(after[:, 0], before[:, 0])
    assert not torch.allclose(after[:, 1], before[:, 1])


def test_autocast_takes_the_mask(attention):
    x = torch.randn(1, 5, WIDTH)
    blocked = draw_blocked(1, 5, 5)
    expected = attention(x, x, x, blocked)
    with torch.autocast("cpu", torch.bfloat16):
        result = attention(x, x, x, blocked)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), expected, atol=0.05, rtol=0.05)


def test_dropout_sets_attention_weights_to_zero_and_enlarges_the_others():
    module = MultiHeadAttention(WIDTH, 1, dropout=0.75)
    with torch.no_grad():
        for weight in (*module.in_proj_weight.chunk(3), module.out_proj.weight):
            weight.copy_(torch.eye(WIDTH))
    x, values = torch.randn(1, 2000, WIDTH), torch.eye(WIDTH)[None]
    dropped = module(x, values, values)  # the values are unit vectors, so the results are the weights
    weights = module.eval()(x, values, values)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 4 * weights[kept])
    assert kept.float().mean().item() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("heads", [0, 3])
def test_heads_must_divide_the_width(heads):
    message = f"16 cannot be shared by {heads} attention heads.*NHEADS"
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(WIDTH, heads)
    with pytest.raises(ValueError, match=message):
        MSDeformAttn(width=WIDTH, num_heads=heads, num_levels=1, num_points=1)


def test_deformable_starts_on_a_square_of_rays():
    module = MSDeformAttn(width=16, num_heads=8, num_levels=3, num_points=4)
    rays = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    expected = torch.tensor([[[[(x * k, y * k) for k in (1, 2, 3, 4)]] * 3 for x, y in rays]]).float()
    torch.testing.assert_close(module.sampling_offsets.bias, expected.flatten(), atol=1e-5, rtol=0)
    parameters = dict(module.named_parameters())
    biases = ("attention_weights.bias", "value_proj.bias", "output_proj.bias")
    for name in ("sampling_offsets.weight", "attention_weights.weight", *biases):
        assert not parameters[name].any(), name


def plain_deformable(offsets, weights, levels):
    """One head, two channels, identity projections; offsets (L, P, 2) and weights (L, P) are constant."""
    module = MSDeformAttn(width=2, num_heads=1, num_levels=levels, num_points=len(offsets[0]))
    with torch.no_grad():
        module.value_proj.weight.copy_(torch.eye(2))
        module.output_proj.weight.copy_(torch.eye(2))
        module.sampling_offsets.bias.copy_(torch.tensor(offsets).flatten())
        module.attention_weights.bias.copy_(torch.tensor(weights).log().flatten())
    return module


def test_deformable_moves_by_cells_x_before_y():
    value = torch.arange(24.0).view(1, 12, 2)
    image = value.view(3, 4, 2)
    module = plain_deformable([[[1.0, 0.0]]], [[1.0]], levels=1)
    moved = module(torch.zeros(1, 12, 2), value, map_sequence(((3, 4),), value.device)).view(3, 4, 2)
    torch.testing.assert_close(moved[:, :3], image[:, 1:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(moved[:, 3], torch.zeros(3, 2), atol=1e-5, rtol=0)


def test_deformable_offsets_are_in_cells_of_the_sampled_level():
    value = torch.randn(1, 4 + 1, 2)  # a 2 x 2 map, then a single cell
    offsets = [[[0.0, 0.0], [0.0, 0.0]], [[0.5, 0.0], [0.0, 9.0]]]
    module = plain_deformable(offsets, [[0.1, 0.2], [0.3, 0.4]], levels=2)
    result = module(torch.zeros(1, 5, 2), value, map_sequence(((2, 2), (1, 1)), value.device))
    # From (0.25, 0.25) the point in the single cell is at (0.75, 0.25): off its center by a quarter each way.
    torch.testing.assert_close(result[0, 0], 0.3 * value[0, 0] + 0.3 * 0.75**2 * value[0, 4])
    # The single cell finds the middle of the 2 x 2 map, and half of itself.
    torch.testing.assert_close(result[0, 4], 0.3 * value[0, :4].mean(0) + 0.3 * 0.5 * value[0, 4])


def test_deformable_is_the_softmax_of_points_around_the_centers():
    x, samples = torch.randn(2, 16, 16), (2, 2, 3)
    module = MSDeformAttn(width=16, num_heads=2, num_levels=2, num_points=3)
    for projection in (module.sampling_offsets, module.attention_weights):
        nn.init.normal_(projection.weight)  # points and weights depend on the query
    maps = map_sequence(((3, 4), (2, 2)), x.device)
    offsets = module.sampling_offsets(x).unflatten(-1, (*samples, 2))
    locations = maps.centers[:, None, None, None] + offsets / torch.tensor([[4, 3], [2, 2]])[:, None]
    weights = module.attention_weights(x).unflatten(-1, (2, 6)).softmax(-1).unflatten(-1, (2, 3))
    values = module.value_proj(x).unflatten(-1, (2, 8))
    expected = module.output_proj(ms_deform_attn(values, maps.shapes, locations, weights))
    torch.testing.assert_close(module(x, x, maps), expected, atol=1e-5, rtol=1e-4)


def test_map_sequence():
    maps = map_sequence(((1, 2), (2, 1)), torch.device("cpu"))
    assert maps.centers.tolist() == [[0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.5, 0.75]]
