"""The decoder and its ablations against a slow version with dense masks and torch's attention."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mask2former.modeling.layers.position import sine_position
from mask2former.modeling.transformer_decoder import MultiScaleMaskedTransformerDecoder
from mask2former.modeling.transformer_decoder.memory_attention import blocked_cells, resize_mask_features
from mask2former.modeling.transformer_decoder.options import DecoderOptions
from mask2former.structures import ShapeSpec

WIDTH, HEADS, QUERIES, CLASSES, MASK_DIM = 16, 4, 6, 3, 8
MEMORY_SIZES = [(2, 3), (4, 6), (8, 12)]


def build(pre_norm=False, enforce_input_proj=False, **changes):
    """Build a small decoder; changes are its arguments or fields of `DecoderOptions`."""
    torch.manual_seed(0)
    options = {name: changes.pop(name) for name in DecoderOptions.__match_args__ if name in changes}
    memory = {"memory_shape": [ShapeSpec(WIDTH, stride) for stride in (32, 16, 8)]}
    counts = {"num_classes": CLASSES, "num_queries": QUERIES, "num_heads": HEADS, "num_layers": 4}
    widths = {"hidden_dim": WIDTH, "dim_feedforward": 24, "mask_dim": MASK_DIM}
    return MultiScaleMaskedTransformerDecoder(
        **(memory | counts | widths | changes),
        pre_norm=pre_norm,
        enforce_input_proj=enforce_input_proj,
        options=DecoderOptions(**options),
    )


def draw_inputs(channels=WIDTH):
    generator = torch.Generator().manual_seed(1)
    memory = [torch.randn(2, channels, *size, generator=generator) for size in MEMORY_SIZES]
    return memory, torch.randn(2, MASK_DIM, 16, 24, generator=generator)


def torch_attention(layer, query, key, value, mask=None):
    reference = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    reference.load_state_dict(layer.state_dict())
    return reference(query, key, value, attn_mask=mask)[0]


def dense_mask(logits, sizes):
    """Return True where a query may not attend, (B, Q, N)."""
    small = [F.interpolate(logits, size=size, mode="bilinear", align_corners=False) for size in sizes]
    blocked = torch.cat([level.flatten(2) for level in small], -1).sigmoid() < 0.5
    blocked[blocked.all(-1)] = False
    return blocked


def gaussian_logits(layer, query, sizes):
    """Return SMCA's term of the attention logits, (B, heads, Q, N), cell by cell."""
    x, y = ((torch.arange(HEADS) * 2 + axis) for axis in (0, 1))  # outputs of the linear layers, by head
    place = layer.center(query).sigmoid()
    shift, scale = layer.shift(query), layer.scale(query)
    columns = []
    for height, width in sizes:
        for row in range(height):
            for column in range(width):
                dx = ((column + 0.5) / width - place[..., :1] - shift[..., x]) / scale[..., x]
                dy = ((row + 0.5) / height - place[..., 1:] - shift[..., y]) / scale[..., y]
                columns.append((-(dx**2) - dy**2).transpose(1, 2))
    return torch.stack(columns, -1)


def slow_cross_attention(name, layer, x, position, key, value, blocked, sizes):
    """Return the update of queries x by one of the ways to read the memory."""
    if name == "pooling":
        open_cells = torch.zeros(*x.shape[:2], key.shape[1]) if blocked is None else blocked.float()
        means = [
            [image_values[flags == 0].mean(0) for flags in image]
            for image, image_values in zip(open_cells, value, strict=True)
        ]
        return layer.multihead_attn["out_proj"](torch.stack([torch.stack(rows) for rows in means]))
    mask = None
    if name == "masked" and blocked is not None:
        mask = blocked.repeat_interleave(HEADS, 0)
    if name == "smca":
        mask = gaussian_logits(layer, x + position, sizes).flatten(0, 1)
    return torch_attention(layer.multihead_attn, x + position, key, value, mask)


def slow_predictions(decoder, memory, mask_features):
    """Return class and mask logits of every prediction, post-norm, with dense masks."""
    options = decoder.options
    chosen = [i for i, stride in enumerate((32, 16, 8)) if options.memory_stride in (0, stride)]
    values = [
        memory[level].flatten(2).transpose(1, 2) + embed
        for level, embed in zip(chosen, decoder.level_embed.weight, strict=True)
    ]
    all_sizes = [MEMORY_SIZES[level] for level in chosen]
    if options.fine_layers:
        weight, bias = decoder.fine_proj.weight[:, :, 0, 0], decoder.fine_proj.bias
        values.append(torch.einsum("dc,bchw->bhwd", weight, mask_features).flatten(1, 2) + bias)
        all_sizes.append(tuple(mask_features.shape[2:]))
    keys = [value + sine_position(size, WIDTH) for size, value in zip(all_sizes, values, strict=True)]
    position = decoder.query_embed.weight.expand(2, -1, -1)
    x = decoder.query_feat.weight.expand(2, -1, -1) if options.learned_queries else 0 * position
    results = []
    for i in range(len(decoder.transformer_ffn_layers) + 1):
        normed = decoder.decoder_norm(x)
        masks = torch.einsum("bqc,bchw->bqhw", decoder.mask_embed(normed), mask_features)
        results.append((decoder.class_embed(normed), masks))
        if i == len(decoder.transformer_ffn_layers):
            hidden = not options.learned_queries or not options.supervise_queries
            return results[1:] if hidden else results
        turn = [i % len(chosen)]
        if options.concatenate_levels:
            turn = [0, 1, 2]
        if i >= len(decoder.transformer_ffn_layers) - options.fine_layers:
            turn = [len(chosen)]
        sizes = [all_sizes[level] for level in turn]
        key, value = (torch.cat([maps[level] for level in turn], 1) for maps in (keys, values))
        blocked = None if i == 0 and not options.learned_queries else dense_mask(masks, sizes)
        cross = decoder.transformer_cross_attention_layers[i]
        own = decoder.transformer_self_attention_layers[i]
        for step in ("self", "cross") if options.self_attention_first else ("cross", "self"):
            if step == "cross":
                x = cross.norm(
                    x
                    + slow_cross_attention(options.attention, cross, x, position, key, value, blocked, sizes)
                )
            else:
                x = own.norm(x + torch_attention(own.self_attn, x + position, x + position, x))
        feed_forward = decoder.transformer_ffn_layers[i]
        x = feed_forward.norm(x + feed_forward.linear2(feed_forward.linear1(x).relu()))


ABLATIONS = [
    {},
    {"attention": "cross"},
    {"attention": "smca"},
    {"attention": "pooling"},
    {"memory_stride": 32},
    {"memory_stride": 8},
    {"concatenate_levels": True},
    {"concatenate_levels": True, "attention": "smca"},
    {"fine_layers": 1},
    {"fine_layers": 3},
    {"fine_layers": 2, "attention": "smca"},
    {"learned_queries": False},
    {"learned_queries": False, "attention": "pooling"},
    {"supervise_queries": False},
    {"self_attention_first": True},
    {"learned_queries": False, "self_attention_first": True},
]


@pytest.mark.parametrize("ablation", ABLATIONS, ids=str)
def test_equals_the_reference_implementation(ablation):
    decoder = build(**ablation)
    for name, parameter in decoder.named_parameters():
        if ".shift." in name or ".scale." in name:  # SMCA's start from constants
            nn.init.uniform_(parameter, *((0.4, 0.8) if name.endswith("bias") else (-0.05, 0.05)))
    memory, mask_features = draw_inputs()
    predictions = decoder(memory, mask_features)
    expected = slow_predictions(decoder, memory, mask_features)
    first = ablation.get("learned_queries", True) and ablation.get("supervise_queries", True)
    assert len(predictions.layers) == len(expected) == 4 + first
    for i, (classes, masks) in enumerate(expected):
        torch.testing.assert_close(predictions.layers[i].class_logits, classes, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(predictions.mask_logits(i), masks, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("ablation", ABLATIONS, ids=str)
def test_every_parameter_gets_a_gradient(ablation):
    decoder = build(**ablation)
    predictions = decoder(*draw_inputs())
    last = predictions.layers[-1]
    (last.class_logits.square().sum() + predictions.mask_logits().square().sum()).backward()
    from_zero = ablation.get("self_attention_first") and not ablation.get("learned_queries", True)
    constant = "transformer_self_attention_layers.0." if from_zero else "none"  # attention of equal queries
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.any() or name.startswith(constant)


def test_zero_queries_and_one_level_have_no_parameters_for_what_they_lack():
    names = build(learned_queries=False, memory_stride=16).state_dict()
    assert "query_feat.weight" not in names
    assert names["level_embed.weight"].shape == (1, WIDTH)


def test_dropout_acts_in_each_kind_of_layer_and_in_training_alone():
    decoder = build(dropout=0.5, num_layers=1)
    memory, mask_features = draw_inputs()
    x, position = torch.randn(2, QUERIES, WIDTH), decoder.query_embed.weight
    cells = decoder._cells(0, memory[0], mask_features)
    calls = [
        lambda: decoder.transformer_cross_attention_layers[0](x, position, cells, None),
        lambda: decoder.transformer_self_attention_layers[0](x, position),
        lambda: decoder.transformer_ffn_layers[0](x),
    ]
    assert all(not torch.equal(call(), call()) for call in calls)
    decoder.eval()
    assert all(torch.equal(call(), call()) for call in calls)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"attention": "maskd"}, "ATTENTION is 'maskd'; it must be one of masked, cross, smca, pooling"),
        ({"memory_stride": 4}, r"MEMORY_STRIDE is 4, but the memory .* has strides \[32, 16, 8\]"),
        ({"memory_stride": 8, "concatenate_levels": True}, "MEMORY_STRIDE 8 .* CONCATENATE_LEVELS"),
        ({"attention": "pooling", "pre_norm": True}, "ATTENTION pooling .*PRE_NORM"),
        ({"fine_layers": 1, "memory_stride": 8}, "FINE_LAYERS .* MEMORY_STRIDE must be 0"),
        ({"fine_layers": 1, "concatenate_levels": True}, "FINE_LAYERS .* CONCATENATE_LEVELS False"),
        ({"fine_layers": 4}, r"FINE_LAYERS is 4; it must be less than the 4 layers, .*DEC_LAYERS"),
    ],
)
def test_options_that_make_no_sense_are_errors_that_name_the_keys(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.parametrize("size", [(2, 3), (8, 12), (16, 24), (5, 7)])
def test_masks_are_those_of_resized_dense_logits(size):
    embed, (_, mask_features) = torch.randn(2, QUERIES, MASK_DIM), draw_inputs()
    dense = torch.einsum("bqc,bchw->bqhw", embed, mask_features)
    small = F.interpolate(dense, size=size, mode="bilinear", align_corners=False).flatten(2)
    blocked = blocked_cells(embed, resize_mask_features(mask_features, size).flatten(2))
    sure = (small.abs() > 1e-4) & (small > 0).any(-1, keepdim=True)
    assert sure.any()
    assert torch.equal(blocked[sure], small[sure] < 0)


def test_a_query_with_an_empty_mask_attends_everywhere():
    guide = torch.tensor([[[1.0, 1.0, 0.0, -1.0]]])
    embed = torch.tensor([[[1.0], [-1.0], [0.0]]])
    blocked = [[False, False, False, True], [True, True, False, False], [False] * 4]
    assert blocked_cells(embed, guide).tolist() == [blocked]
    assert not blocked_cells(-torch.ones(1, 1, 1), torch.ones(1, 1, 4)).any()


def test_masks_pass_no_gradient():
    memory, mask_features = draw_inputs()
    mask_features.requires_grad_()
    predictions = build()(memory, mask_features)
    sum(layer.class_logits.square().sum() for layer in predictions.layers).backward()
    assert mask_features.grad is None


def test_masks_are_float32_under_autocast():
    decoder = build(num_layers=0)
    memory, mask_features = draw_inputs()
    mask_features = mask_features.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        embed = decoder(memory, mask_features).layers[0].mask_embed
        guide = resize_mask_features(mask_features, (4, 6)).flatten(2)
        blocked = blocked_cells(embed, guide)
    assert guide.dtype == torch.float32 and not guide.requires_grad
    assert torch.equal(guide, resize_mask_features(mask_features.float(), (4, 6)).flatten(2))
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


def test_fine_layers_leave_the_initial_values_and_the_shapes_of_all_other_weights():
    state, published = build(fine_layers=2).state_dict(), build().state_dict()
    assert state.keys() - published.keys() == {"fine_proj.weight", "fine_proj.bias"}
    assert all(torch.equal(state[name], value) for name, value in published.items())


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
