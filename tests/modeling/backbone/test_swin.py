"""Swin: windows against explicit loops, every key, errors."""

import itertools
import math
from typing import NamedTuple

import pytest
import torch
from small_backbones import small_swin

from mask2former.config import get_cfg
from mask2former.modeling.backbone.swin import (
    PatchMerging,
    SwinBlock,
)
from mask2former.modeling.backbone.windows import shift_mask, window_layout
from mask2former.modeling.layers import chunking
from mask2former.modeling.layers.drop_path import DropPath
from mask2former.structures import ShapeSpec
from mask2former.utils.registry import BACKBONE


class Place(NamedTuple):
    """The window and position of a row (or column) of tokens, with windows that start at `shift`."""

    window: int
    offset: int
    wrapped: bool  # it came around the map's edge


def places(size, window, shift):
    rolled = [(i - shift) % size for i in range(size)]
    return [Place(r // window, r % window, i < shift) for i, r in enumerate(rolled)]


def slow_attention(attn, image, window, shift):
    """Attend from each token of an unpadded image (H, W, C), one token, head and key at a time."""
    side = [math.ceil(size / window) * window for size in image.shape[:2]]
    rows, columns = (places(size, window, shift) for size in side)
    padded = image.new_zeros(*side, image.shape[2])
    padded[: image.shape[0], : image.shape[1]] = image
    qkv = attn.qkv(padded).unflatten(-1, (3, attn.heads, -1))
    mixed = torch.zeros_like(image).unflatten(-1, (attn.heads, -1))
    for y, x, head in itertools.product(*map(range, mixed.shape[:3])):
        logits, values = [], []
        for v, u in itertools.product(*map(range, side)):
            if (rows[v].window, columns[u].window) != (rows[y].window, columns[x].window):
                continue
            apart = rows[v].wrapped != rows[y].wrapped or columns[u].wrapped != columns[x].wrapped
            dy, dx = rows[y].offset - rows[v].offset, columns[x].offset - columns[u].offset
            offset = (dy + window - 1) * (2 * window - 1) + dx + window - 1
            bias = attn.relative_position_bias_table[offset, head]
            product = qkv[y, x, 0, head] @ qkv[v, u, 1, head] / math.sqrt(qkv.shape[-1])
            logits.append(product + bias - 100 * apart)
            values.append(qkv[v, u, 2, head])
        mixed[y, x, head] = torch.stack(logits).softmax(0) @ torch.stack(values)
    return attn.proj(mixed.flatten(-2))


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(
    ("window", "side"), [(3, (6, 3)), (3, (4, 7)), (3, (2, 2)), (2, (3, 5)), (4, (4, 8)), (4, (3, 5))]
)
@torch.no_grad()
def test_block_equals_explicit_loops(window, side, shifted, monkeypatch):
    torch.manual_seed(0)
    keys = {"heads": 2, "mlp_ratio": 2.0, "drop_path": 0.0, "dropout": 0.0}
    block = SwinBlock(6, window=window, shifted=shifted, **keys).double()
    for parameter in block.parameters():
        parameter.normal_()
    maps = torch.randn(2, *side, 6, dtype=torch.float64)
    padded = [math.ceil(size / window) * window for size in side]
    actual = block(maps, shift_mask(*padded, window, maps.device))
    for image, result in zip(maps, actual, strict=True):
        shift = window // 2 if shifted else 0
        attended = image + slow_attention(block.attn, block.norm1(image), window, shift)
        expected = attended + block.mlp(block.norm2(attended))
        torch.testing.assert_close(result, expected)
        monkeypatch.setattr(chunking, "CHUNK_BYTES", 1000)  # a few windows or tokens at a time
        tokens = image.flatten(0, 1).clone()
        block.infer_(tokens, window_layout(*side, window, shift))
        torch.testing.assert_close(tokens.view_as(image), expected)


@pytest.mark.parametrize("training", [False, True])
def test_results_without_gradients_are_the_same(training, monkeypatch):
    monkeypatch.setattr(chunking, "CHUNK_BYTES", 10_000)
    model = small_swin(drop_path_rate=0.5).train(training)
    images = torch.randn(3, 3, 41, 56)
    before = images.clone()
    torch.manual_seed(1)
    expected = model(images)
    torch.manual_seed(1)
    with torch.no_grad():
        actual = model(images)
    for name, x in expected.items():
        torch.testing.assert_close(actual[name], x.detach())
        assert actual[name].stride() == x.stride()
    assert torch.equal(images, before)


def test_inference_changes_no_argument_in_place():
    x = torch.randn(1, 8, 8, 8)
    before = x.clone()
    with torch.no_grad():
        small_swin().layers[0].eval()(x, False)
    assert torch.equal(x, before)


@torch.no_grad()
def test_merging_takes_neighbors_down_before_right():
    torch.manual_seed(0)
    merging = PatchMerging(3)
    x = torch.randn(1, 3, 5, 3)
    actual = merging(x)
    assert actual.shape == (1, 2, 3, 6)
    for i, j in itertools.product(range(2), range(3)):
        tokens = [(2 * i, 2 * j), (2 * i + 1, 2 * j), (2 * i, 2 * j + 1), (2 * i + 1, 2 * j + 1)]
        four = [x[0, y, z] if y < 3 and z < 5 else torch.zeros(3) for y, z in tokens]
        torch.testing.assert_close(actual[0, i, j], merging.reduction(merging.norm(torch.cat(four))))


def test_outputs_are_normed_and_merging_takes_the_map_before_the_norm():
    model = small_swin()
    images = torch.randn(1, 3, 32, 32)
    before = model(images)
    torch.testing.assert_close(before["res2"].mean(1), torch.zeros(1, 8, 8), atol=1e-5, rtol=0)
    with torch.no_grad():
        model.norm0.weight.fill_(2)
    after = model(images)
    torch.testing.assert_close(after["res2"], 2 * before["res2"])
    assert torch.equal(after["res3"], before["res3"])


def test_only_requested_stages_are_built():
    model = small_swin(depths=(2, 2, 2), num_heads=(2, 2, 2), out_features=["res3"])
    assert list(model(torch.randn(1, 3, 32, 32))) == ["res3"]
    assert len(model.layers) == 2
    assert not any(name.startswith(("norm0", "norm2", "layers.1.downsample")) for name in model.state_dict())


def test_drop_path_grows_linearly_over_all_blocks():
    model = small_swin(depths=(2, 3), drop_path_rate=0.4)
    rates = [module.rate for module in model.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_absolute_positions_are_added_to_the_patches_and_resized():
    plain, with_position = small_swin(), small_swin(ape=True, pretrain_img_size=32)
    with_position.load_state_dict(plain.state_dict(), strict=False)
    images = torch.randn(1, 3, 32, 48)
    position = with_position.absolute_pos_embed
    assert position.shape == (1, 8, 8, 8)
    assert not torch.allclose(with_position(images)["res2"], plain(images)["res2"])
    torch.nn.init.ones_(position)  # a constant is the same at any size
    torch.nn.init.ones_(plain.patch_embed.norm.bias)
    torch.testing.assert_close(with_position(images), plain(images))


def build(options):
    """Build from keys of MODEL.SWIN, with the same random numbers at each call."""
    keys = {"EMBED_DIM": 16, "DEPTHS": [2, 2], "NUM_HEADS": [2, 4], "WINDOW_SIZE": 4}
    cfg = get_cfg()
    cfg.MODEL.SWIN.update({**keys, "OUT_FEATURES": ["res2", "res3"], **options})
    torch.manual_seed(0)
    return BACKBONE.get("D2SwinTransformer")(cfg, ShapeSpec(channels=3))


@pytest.mark.parametrize(
    ("options", "name", "shape"),
    [
        ({"PATCH_SIZE": 2}, "patch_embed.proj.weight", (16, 3, 2, 2)),
        ({"EMBED_DIM": 32}, "layers.1.blocks.0.attn.qkv.weight", (192, 64)),
        ({"DEPTHS": [2, 1]}, "layers.1.blocks.1.norm1.weight", None),
        ({"NUM_HEADS": [2, 8]}, "layers.1.blocks.0.attn.relative_position_bias_table", (49, 8)),
        ({"WINDOW_SIZE": 3}, "layers.0.blocks.0.attn.relative_position_index", (9, 9)),
        ({"MLP_RATIO": 2.0}, "layers.0.blocks.0.mlp.fc1.weight", (32, 16)),
        ({"QKV_BIAS": False}, "layers.0.blocks.0.attn.qkv.bias", None),
        ({"PATCH_NORM": False}, "patch_embed.norm.weight", None),
        ({"APE": True, "PRETRAIN_IMG_SIZE": 48}, "absolute_pos_embed", (1, 16, 12, 12)),
        ({"OUT_FEATURES": ["res3"]}, "norm0.weight", None),
    ],
)
def test_keys_that_change_weights(options, name, shape):
    plain, changed = build({}).state_dict(), build(options).state_dict()
    assert (tuple(changed[name].shape) if name in changed else None) == shape
    assert (tuple(plain[name].shape) if name in plain else None) != shape


@pytest.mark.parametrize(
    ("key", "value"),
    [("QK_SCALE", 5.0), ("DROP_RATE", 0.5), ("ATTN_DROP_RATE", 0.5), ("DROP_PATH_RATE", 0.9)],
)
def test_keys_that_change_results(key, value):
    models = [build({"DROP_PATH_RATE": 0.0}), build({"DROP_PATH_RATE": 0.0, key: value})]
    images = torch.randn(4, 3, 24, 40)
    for training in (True, False):
        plain, changed = (model.train(training)(images)["res3"] for model in models)
        assert torch.equal(plain, changed) != (training or key == "QK_SCALE")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"NUM_HEADS": [2]}, r"NUM_HEADS is \[2\]"),
        ({"NUM_HEADS": [2, 5]}, r"widths \[16, 32\]"),
        ({"OUT_FEATURES": ["res4"]}, r"OUT_FEATURES is \['res4'\]"),
        ({"DROP_PATH_RATE": 1.0}, "drop path"),
        ({"NUM_HEADS": [2, 0]}, r"NUM_HEADS is \[2, 0\]"),
        ({"WINDOW_SIZE": 0}, "WINDOW_SIZE is 0; it must be at least 1"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        build(options)
