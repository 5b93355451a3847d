"""The masked-attention decoder against a slow version with dense masks and torch's attention."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mask2former.modeling.layers.position import sine_position
from mask2former.modeling.transformer_decoder import MultiScaleMaskedTransformerDecoder
from mask2former.modeling.transformer_decoder.masked import blocked_cells, resize_mask_features
from mask2former.structures import ShapeSpec

WIDTH, HEADS, QUERIES, CLASSES, MASK_DIM = 16, 4, 6, 3, 8
MEMORY_SIZES = [(2, 3), (4, 6), (8, 12)]


def build(**changes):
    torch.manual_seed(0)
    memory = {"memory_shape": [ShapeSpec(WIDTH, stride) for stride in (32, 16, 8)]}
    counts = {"num_classes": CLASSES, "num_queries": QUERIES, "num_heads": HEADS, "num_layers": 4}
    widths = {"hidden_dim": WIDTH, "dim_feedforward": 24, "mask_dim": MASK_DIM}
    options = {"pre_norm": False, "enforce_input_proj": False}
    return MultiScaleMaskedTransformerDecoder(**(memory | counts | widths | options | changes))


def draw_inputs(channels=WIDTH):
    generator = torch.Generator().manual_seed(1)
    memory = [torch.randn(2, channels, *size, generator=generator) for size in MEMORY_SIZES]
    return memory, torch.randn(2, MASK_DIM, 16, 24, generator=generator)


def torch_attention(layer, query, key, value, mask=None):
    reference = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    reference.load_state_dict(layer.state_dict())
    return reference(query, key, value, attn_mask=mask)[0]


def dense_mask(logits, size):
    """Return True where a query may not attend, one copy per head."""
    small = F.interpolate(logits, size=size, mode="bilinear", align_corners=False).flatten(2)
    blocked = small.sigmoid() < 0.5
    blocked[blocked.all(-1)] = False
    return blocked.repeat_interleave(HEADS, 0)


def slow_predictions(decoder, memory, mask_features):
    """Return class and mask logits of every prediction, post-norm, with dense masks."""
    x, position = (e.weight.expand(2, -1, -1) for e in (decoder.query_feat, decoder.query_embed))
    results = []
    for i in range(len(decoder.transformer_ffn_layers) + 1):
        normed = decoder.decoder_norm(x)
        masks = torch.einsum("bqc,bchw->bqhw", decoder.mask_embed(normed), mask_features)
        results.append((decoder.class_embed(normed), masks))
        if i == len(decoder.transformer_ffn_layers):
            return results
        level, size = i % 3, MEMORY_SIZES[i % 3]
        value = memory[level].flatten(2).transpose(1, 2) + decoder.level_embed.weight[level]
        key = value + sine_position(size, WIDTH)
        cross = decoder.transformer_cross_attention_layers[i]
        x = cross.norm(
            x + torch_attention(cross.multihead_attn, x + position, key, value, dense_mask(masks, size))
        )
        own = decoder.transformer_self_attention_layers[i]
        x = own.norm(x + torch_attention(own.self_attn, x + position, x + position, x))
        feed_forward = decoder.transformer_ffn_layers[i]
        x = feed_forward.norm(x + feed_forward.linear2(feed_forward.linear1(x).relu()))


def test_equals_the_reference_implementation():
    decoder = build()
    memory, mask_features = draw_inputs()
    predictions = decoder(memory, mask_features)
    expected = slow_predictions(decoder, memory, mask_features)
    assert len(predictions.layers) == len(expected) == 5
    for i, (classes, masks) in enumerate(expected):
        torch.testing.assert_close(predictions.layers[i].class_logits, classes, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(predictions.mask_logits(i), masks, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(2, 3), (8, 12), (16, 24), (5, 7)])
def test_masks_are_those_of_resized_dense_logits(size):
    embed, (_, mask_features) = torch.randn(2, QUERIES, MASK_DIM), draw_inputs()
    dense = torch.einsum("bqc,bchw->bqhw", embed, mask_features)
    small = F.interpolate(dense, size=size, mode="bilinear", align_corners=False).flatten(2)
    blocked = blocked_cells(embed, resize_mask_features(mask_features, size))
    sure = (small.abs() > 1e-4) & (small > 0).any(-1, keepdim=True)
    assert sure.any()
    assert torch.equal(blocked[sure], small[sure] < 0)


def test_a_query_with_an_empty_mask_attends_everywhere():
    guide = torch.tensor([[[[1.0, 1.0], [0.0, -1.0]]]])
    embed = torch.tensor([[[1.0], [-1.0], [0.0]]])
    blocked = [[False, False, False, True], [True, True, False, False], [False] * 4]
    assert blocked_cells(embed, guide).tolist() == [blocked]
    assert not blocked_cells(-torch.ones(1, 1, 1), torch.ones(1, 1, 2, 2)).any()


def test_masks_pass_no_gradient():
    memory, mask_features = draw_inputs()
    mask_features.requires_grad_()
    predictions = build()(memory, mask_features)
    sum(layer.class_logits.square().sum() for layer in predictions.layers).backward()
    assert mask_features.grad is None


def test_every_parameter_gets_a_gradient():
    decoder = build()
    predictions = decoder(*draw_inputs())
    last = predictions.layers[-1]
    (last.class_logits.square().sum() + predictions.mask_logits().square().sum()).backward()
    assert not [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.any()]


def test_masks_are_float32_under_autocast():
    decoder = build(num_layers=0)
    memory, mask_features = draw_inputs()
    mask_features = mask_features.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        embed = decoder(memory, mask_features).layers[0].mask_embed
        guide = resize_mask_features(mask_features, (4, 6))
        blocked = blocked_cells(embed, guide)
    assert guide.dtype == torch.float32 and not guide.requires_grad
    assert torch.equal(guide, resize_mask_features(mask_features.float(), (4, 6)))
    assert torch.equal(blocked, blocked_cells(embed.float(), guide))


def test_pre_norm_layers_add_to_the_raw_queries():
    decoder = build(pre_norm=True, num_layers=1)
    for name, parameter in decoder.named_parameters():
        if name.endswith(("out_proj.weight", "linear2.weight", "linear2.bias")):
            nn.init.zeros_(parameter)  # no update: the residual carries the queries through
    first, second = decoder(*draw_inputs()).layers
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize(
    ("channels", "enforce", "names"), [(WIDTH, False, 0), (WIDTH, True, 6), (12, False, 6)]
)
def test_memory_is_projected_if_its_width_differs(channels, enforce, names):
    shapes = [ShapeSpec(channels, stride) for stride in (32, 16, 8)]
    decoder = build(memory_shape=shapes, enforce_input_proj=enforce)
    assert sum(name.startswith("input_proj") for name in decoder.state_dict()) == names
    assert decoder(*draw_inputs(channels)).mask_logits().shape == (2, QUERIES, 16, 24)


def test_initial_values():
    decoder = build(hidden_dim=64, num_queries=100)
    assert all(0.9 < e.weight.std() < 1.1 for e in (decoder.query_feat, decoder.query_embed))
    attention = decoder.transformer_cross_attention_layers[0].multihead_attn
    feed_forward = decoder.transformer_ffn_layers[0]
    xavier = {attention.in_proj_weight: 256, attention.out_proj.weight: 128, feed_forward.linear1.weight: 88}
    for weight, fans in xavier.items():
        bound = (6 / fans) ** 0.5
        assert 0.97 * bound < weight.abs().max() <= bound
    assert not attention.in_proj_bias.any() and not attention.out_proj.bias.any()
