"""The decoder of clips against a slow version, and against the decoder of images."""

import math

import pytest
import torch
import torch.nn.functional as F
from tiny_clips import IMAGES, tiny_video_model
from torch import nn

from mask2former.modeling.layers.position import frame_position, sine_position
from mask2former.modeling.transformer_decoder import MultiScaleMaskedTransformerDecoder
from mask2former.modeling.transformer_decoder.options import PUBLISHED, DecoderOptions
from mask2former.modeling.video import VideoMultiScaleMaskedTransformerDecoder
from mask2former.structures import ShapeSpec

WIDTH, HEADS, FRAMES, MASK_DIM = 16, 4, 3, 8
MEMORY_SIZES = [(2, 3), (4, 6), (8, 12)]


def build(kind=VideoMultiScaleMaskedTransformerDecoder, channels=WIDTH, options=PUBLISHED):
    torch.manual_seed(0)
    return kind(
        memory_shape=[ShapeSpec(channels, stride) for stride in (32, 16, 8)],
        num_classes=3,
        hidden_dim=WIDTH,
        num_queries=6,
        num_heads=HEADS,
        dim_feedforward=24,
        num_layers=4,
        mask_dim=MASK_DIM,
        pre_norm=False,
        enforce_input_proj=False,
        options=options,
    )


def draw_inputs(num_frames=FRAMES, channels=WIDTH):
    generator = torch.Generator().manual_seed(1)
    memory = [torch.randn(2, channels, num_frames, *size, generator=generator) for size in MEMORY_SIZES]
    return memory, torch.randn(2, MASK_DIM, num_frames, 16, 24, generator=generator)


def slow_position(num_frames, height, width):
    """Return the encoding of every cell by its formula, (T, h, w, C)."""
    table = torch.zeros(num_frames, height, width, WIDTH)
    for t in range(num_frames):
        for row in range(height):
            for column in range(width):
                for i in range(WIDTH):
                    wave = math.cos if i % 2 else math.sin
                    place, size = (row, height) if i < WIDTH // 2 else (column, width)
                    in_image = 2 * (i % (WIDTH // 2) // 2) / (WIDTH // 2)
                    angle = 2 * math.pi * (place + 1) / (size + 1e-6) / 10000**in_image
                    of_frame = 2 * math.pi * (t + 1) / (num_frames + 1e-6) / 10000 ** (2 * (i // 2) / WIDTH)
                    table[t, row, column, i] = wave(angle) + wave(of_frame)
    return table


def attention(layer, query, key, value, mask=None):
    reference = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    reference.load_state_dict(layer.state_dict())
    return reference(query, key, value, attn_mask=mask)[0]


def slow_predictions(decoder, memory, mask_features):
    """Return class and mask logits of every prediction, with dense masks of every frame."""
    x = decoder.query_feat.weight.expand(2, -1, -1)
    position = decoder.query_embed.weight
    results = []
    for i in range(5):
        normed = decoder.decoder_norm(x)
        masks = torch.einsum("bqc,bcthw->bqthw", decoder.mask_embed(normed), mask_features)
        results.append((decoder.class_embed(normed), masks))
        if i == 4:
            return results
        maps, size = memory[i % 3], MEMORY_SIZES[i % 3]
        value = maps.permute(0, 2, 3, 4, 1) + decoder.level_embed.weight[i % 3]
        key = (value + slow_position(FRAMES, *size)).flatten(1, 3)
        resized = [F.interpolate(masks[:, :, t], size=size, mode="bilinear") for t in range(FRAMES)]
        blocked = torch.stack(resized, 2).flatten(2).sigmoid() < 0.5
        blocked[blocked.all(-1)] = False
        cross, own = (
            layers[i]
            for layers in (
                decoder.transformer_cross_attention_layers,
                decoder.transformer_self_attention_layers,
            )
        )
        mask = blocked.repeat_interleave(HEADS, 0)
        x = cross.norm(x + attention(cross.multihead_attn, x + position, key, value.flatten(1, 3), mask))
        x = own.norm(x + attention(own.self_attn, x + position, x + position, x))
        feed_forward = decoder.transformer_ffn_layers[i]
        x = feed_forward.norm(x + feed_forward.linear2(feed_forward.linear1(x).relu()))


def test_equals_the_slow_version():
    decoder = build()
    memory, mask_features = draw_inputs()
    found = decoder(memory, mask_features)
    expected = slow_predictions(decoder, memory, mask_features)
    for layer, (classes, masks) in enumerate(expected):
        torch.testing.assert_close(found.layers[layer].class_logits, classes, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(found.mask_logits(layer), masks, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [PUBLISHED, DecoderOptions(fine_layers=2)], ids=["published", "fine"])
@pytest.mark.parametrize("channels", [WIDTH, 12])  # 12 channels are projected
def test_a_clip_of_one_frame_is_an_image(channels, options):
    """The encoding of the only frame adds the same to every key, which attention does not notice."""
    memory, mask_features = draw_inputs(num_frames=1, channels=channels)
    images = [maps.squeeze(2) for maps in memory], mask_features.squeeze(2)
    clip = build(channels=channels, options=options)(memory, mask_features)
    image = build(MultiScaleMaskedTransformerDecoder, channels, options)(*images)
    for of_clip, of_image in zip(clip.layers, image.layers, strict=True):
        torch.testing.assert_close(of_clip, of_image, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(clip.mask_logits().squeeze(2), image.mask_logits(), atol=2e-4, rtol=1e-4)
    of_images = build(channels=channels, options=options)(*images)
    assert torch.equal(of_images.mask_logits(), image.mask_logits())


def test_the_order_of_frames_matters_by_their_positions_alone():
    decoder = build()
    memory, mask_features = draw_inputs()
    found = decoder(memory, mask_features).layers[-1].class_logits
    mirrored = decoder([maps.flip(2) for maps in memory], mask_features.flip(2)).layers[-1].class_logits
    assert not torch.allclose(found, mirrored, atol=1e-3)


def test_frames_are_encoded_by_all_channels_and_cells_by_half_of_them():
    torch.testing.assert_close(
        sine_position((2, 3), WIDTH).view(1, 2, 3, WIDTH) + frame_position(5, WIDTH)[:, None, None],
        slow_position(5, 2, 3),
        atol=2e-6,
        rtol=0,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"MODEL__META_ARCHITECTURE": "MaskFormer"},
            r"VideoMulti.* reads clips and needs .* VideoMaskFormer, not MaskFormer",
        ),
        (
            {
                "MODEL__MASK_FORMER__TRANSFORMER_DECODER_NAME": IMAGES[
                    "MODEL__MASK_FORMER__TRANSFORMER_DECODER_NAME"
                ]
            },
            r"VideoMaskFormer needs .*DECODER_NAME VideoMulti.*, not MultiScaleMaskedTransformerDecoder",
        ),
        ({"MODEL__MASK_FORMER__DECODER__ATTENTION": "smca"}, r"ATTENTION smca .*; type masked"),
        ({"MODEL__MASK_FORMER__TEST__PANOPTIC_ON": True}, r"PANOPTIC_ON is True, .*type .*PANOPTIC_ON False"),
        ({"MODEL__MASK_FORMER__LOSS_ON": "masks"}, r"LOSS_ON is 'masks', .*type .*LOSS_ON points"),
        ({"MODEL__MASK_FORMER__MATCH_ON": "masks"}, r"MATCH_ON is 'masks', .*type .*MATCH_ON points"),
        ({"MODEL__MASK_FORMER__DEC_LAYERS": 0}, "DEC_LAYERS is 0; it must be at least 1"),
    ],
)
def test_parts_that_do_not_fit_are_errors_that_say_what_to_type(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_video_model(**changes)
