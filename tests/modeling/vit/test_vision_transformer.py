"""The plain vision transformer against transformers', its interface for heads and adapters, its errors."""

import itertools

import pytest
import torch
from small_vits import KINDS, PATCH, SIZES, draw, load_theirs, small_vit, theirs
from torch.nn import functional as F

from mask2former.modeling.vit.positions import relative_offsets
from mask2former.modeling.vit.transformer import VisionTransformer


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_tokens_equal_those_of_transformers(kind, tmp_path):
    oracle = theirs(kind)
    model = load_theirs(small_vit(kind), oracle, tmp_path)
    for size in SIZES:
        images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
        tokens, layout = model(images)
        assert (layout.height, layout.width) == (size[0] // PATCH, size[1] // PATCH)
        expected = oracle(images).last_hidden_state
        torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=1e-5)
        assert expected.std() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_those_of_transformers(kind, tmp_path):
    oracle = theirs(kind)
    model = load_theirs(small_vit(kind), oracle, tmp_path)
    images = torch.randn(1, 3, *SIZES[1], generator=torch.Generator().manual_seed(1))
    weights = torch.randn_like(model(images)[0])
    (model(images)[0] * weights).sum().backward()
    (oracle(images).last_hidden_state * weights).sum().backward()
    pairs = ((model.patch_embed.proj.weight, "patch_embeddings"), (model.blocks[1].norm2.weight, "1.norm2"))
    for parameter, name in pairs[: 1 if kind == "beit" else 2]:
        (found,) = (p for n, p in oracle.named_parameters() if f"{name}." in n and n.endswith("weight"))
        torch.testing.assert_close(parameter.grad, found.grad, rtol=1e-4, atol=1e-3)


def test_rotary_positions_are_rescaled_in_training_as_in_transformers(tmp_path):
    oracle = theirs("dinov3")
    assert oracle.config.pos_embed_rescale == 2.0
    model = load_theirs(small_vit("dinov3", rope_rescale=2.0), oracle, tmp_path)
    images = torch.randn(2, 3, *SIZES[1], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain = model(images)[0]
        torch.testing.assert_close(plain, oracle(images).last_hidden_state, rtol=1e-5, atol=1e-5)
        for seed in (1, 3):
            torch.manual_seed(seed)
            tokens = model.train()(images)[0]
            torch.manual_seed(seed)
            expected = oracle.train()(images).last_hidden_state
            torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=1e-5)
            assert (tokens - plain).abs().max() > 0.01


def test_blocks_in_groups_equal_all_at_once():
    model, images = draw(small_vit()), torch.randn(1, 3, 24, 24)
    x, layout = model.embed(images)
    for first, last in ((0, 1), (1, 1), (1, None)):
        x = model.run(x, layout, first, last)
    torch.testing.assert_close(model.norm(x), model(images)[0])
    assert x.shape[1] == model.special_tokens + layout.patches == 5 + 36


def with_queries(model, size, count=3):
    """Return tokens with queries in front, as EoMT has them, their layout, and drawn blocked keys."""
    x, layout = model.embed(torch.randn(2, 3, *size))
    x = torch.cat((torch.randn(2, count, x.shape[2]), x), dim=1)
    blocked = torch.rand(2, count, x.shape[1]) < 0.5
    blocked[:, :, :count] = False
    return x, layout, blocked


@torch.no_grad()
def test_a_query_attends_as_if_blocked_tokens_were_not_there():
    attention = draw(small_vit()).blocks[0].attn  # without positions, so that tokens can be left out
    x, layout, blocked = with_queries(small_vit(), (20, 28))
    actual = attention(x, layout, blocked)
    for image, query in itertools.product(range(2), range(3)):
        kept = x[image, ~blocked[image, query]][None]
        torch.testing.assert_close(actual[image, query], attention(kept, layout)[0, query])


@pytest.mark.parametrize("kind", ["dinov2", "dinov3", "beit"])
@torch.no_grad()
def test_blocked_keys_matter_to_other_tokens_alone(kind):
    model = draw(small_vit(kind))
    attention = model.blocks[0].attn
    x, layout, blocked = with_queries(model, (20, 28))
    actual, free = attention(x, layout, blocked), attention(x, layout)
    torch.testing.assert_close(actual[:, 3:], free[:, 3:])
    changed = torch.where(blocked[:, 1, :, None], torch.randn_like(x), x)
    again = attention(changed, layout, blocked)
    torch.testing.assert_close(again[:, 1], actual[:, 1])
    assert not torch.allclose(again[:, [0, 2]], actual[:, [0, 2]], atol=1e-2)


@pytest.mark.parametrize("kind", ["dinov2", "dinov3"])
@pytest.mark.parametrize(("window", "size"), [(2, (16, 24)), (3, (20, 28)), (4, (12, 20)), (8, (12, 20))])
@torch.no_grad()
def test_windows_equal_a_mask_of_all_pairs(kind, window, size):
    whole, windowed = (draw(small_vit(kind, window_size=side)).blocks[0].attn for side in (0, window))
    x, layout, blocked = with_queries(small_vit(kind), size)
    others = x.shape[1] - layout.patches
    apart = torch.zeros(2, x.shape[1], x.shape[1], dtype=torch.bool)
    apart[:, :3] = blocked
    for first, second in itertools.product(range(layout.patches), repeat=2):
        places = [(i // layout.width // window, i % layout.width // window) for i in (first, second)]
        apart[:, others + first, others + second] = places[0] != places[1]
    torch.testing.assert_close(windowed(x, layout, blocked), whole(x, layout, apart))


def test_global_blocks_have_no_windows():
    model = small_vit(window_size=2, global_blocks=(1,))
    assert [block.attn.window for block in model.blocks] == [2, 0, 2]


@pytest.mark.parametrize("kind", ["dinov2", "dinov3"])
@torch.no_grad()
def test_tokens_added_in_front_have_no_position(kind):
    """Two added tokens that change places get each other's values, and patches get the same ones."""
    model = draw(small_vit(kind))
    x, layout = model.embed(torch.randn(1, 3, 24, 20))
    x = torch.cat((torch.randn(1, 2, x.shape[2]), x), dim=1)
    order = [1, 0, *range(2, x.shape[1])]
    torch.testing.assert_close(model.run(x[:, order], layout), model.run(x, layout)[:, order])


@torch.no_grad()
def test_a_map_has_the_patches_row_by_row():
    model = small_vit()
    x, layout = model.embed(torch.randn(1, 3, 12, 20))
    x = torch.cat((torch.randn(1, 7, x.shape[2]), x), dim=1)
    map_ = model.to_map(x, layout)
    assert map_.shape == (1, 32, 3, 5)
    for row, column in ((0, 0), (1, 4), (2, 1)):
        assert torch.equal(map_[0, :, row, column], x[0, 7 + model.special_tokens + 5 * row + column])


@torch.no_grad()
def test_images_are_padded_to_whole_patches():
    model, images = draw(small_vit()), torch.randn(1, 3, 22, 17)
    padded = F.pad(images, (0, 3, 0, 2))
    torch.testing.assert_close(model(images)[0], model(padded)[0])


def test_checkpointing_and_drop_path_give_the_same_step():
    plain, checkpointed = (small_vit(drop_path_rate=0.5, checkpointing=on).train() for on in (False, True))
    images = torch.randn(4, 3, 24, 24)
    for model in (plain, checkpointed):
        torch.manual_seed(1)
        (model(images)[0] ** 3).mean().backward()
    for expected, actual in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        assert expected.grad.any()
        torch.testing.assert_close(actual.grad, expected.grad)


def test_drop_path_grows_to_the_last_block():
    assert [block.drop_path.rate for block in small_vit(drop_path_rate=0.4).blocks] == [0, 0.2, 0.4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": "sine"}, "MODEL.VIT.POSITIONS is 'sine'; known are: learned, relative, rotary"),
        ({"ffn": "gelu"}, "MODEL.VIT.FFN is 'gelu'; known are: mlp, swiglu"),
        ({"num_heads": 5}, "MODEL.VIT.NUM_HEADS is 5; it must divide EMBED_DIM, which is 32"),
        ({"positions": "rotary", "num_heads": 16}, "leaves 2 channels to a head"),
        ({"global_blocks": (1, 3)}, "MODEL.VIT.GLOBAL_BLOCKS has 3; blocks are numbered 0 to 2"),
        (
            {"positions": "relative", "registers": 0, "window_size": 7},
            "MODEL.VIT.WINDOW_SIZE is 7; it must be 0 with relative POSITIONS",
        ),
        ({"rope_rescale": 2.0}, r"MODEL.VIT.ROPE_RESCALE is 2\.0; without rotary POSITIONS it must be 1\.0"),
        ({"positions": "relative"}, "MODEL.VIT.REGISTERS is 4; it must be 0 with relative POSITIONS"),
    ],
)
def test_sizes_that_do_not_fit_are_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        small_vit(**changes)


def test_no_data_dependent_control_flow():
    with torch.device("meta"):  # values do not exist there
        tokens, _ = VisionTransformer(depth=2)(torch.empty(1, 3, 640, 320))
    assert tokens.shape == (1, 5 + 800, 1024)


def test_rows_of_a_bias_table_are_offsets_row_by_row():
    """One row for each (dy, dx), then the three of the class token."""
    height, width = 2, 3
    offsets = relative_offsets(height, width, torch.device("cpu"))
    for query in range(6):
        for key in range(6):
            dy, dx = query // 3 - key // 3, query % 3 - key % 3
            assert offsets[1 + query, 1 + key] == (dy + 1) * 5 + dx + 2
    assert (offsets[0, 1:] == -3).all() and (offsets[1:, 0] == -2).all() and offsets[0, 0] == -1
