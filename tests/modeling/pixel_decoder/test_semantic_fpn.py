"""Semantic FPN: its mask features against plain torch."""

import pytest
import torch
import torch.nn.functional as F
from pixel_decoder_cases import ENCODER, SHAPES, draw_maps

from mask2former.modeling.pixel_decoder import SemanticFPNPixelDecoder


def build(**changes):
    torch.manual_seed(0)
    sizes = {"input_shape": SHAPES, "conv_dim": 32, "mask_dim": 12, "norm": "GN"}
    return SemanticFPNPixelDecoder(**(sizes | ENCODER | changes))


def test_mask_features_are_of_the_sum_of_all_maps():
    decoder = build()
    features = draw_maps()
    mask_features, memory, encoded = decoder(features)
    maps = decoder.pyramid(features | {"res5": encoded})
    torch.testing.assert_close(memory, maps[:3])
    total = 0
    for x, head, steps in zip(maps, decoder.heads, (3, 2, 1, 0), strict=True):
        convolutions = [module for module in head if not isinstance(module, torch.nn.Upsample)]
        assert len(convolutions) == max(steps, 1)
        for convolution in convolutions:
            x = F.conv2d(x, convolution.weight, padding=1)
            x = F.group_norm(x, 32, convolution.norm.weight, convolution.norm.bias).relu()
            if steps:
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        total = total + x
    last = decoder.mask_features
    expected = F.conv2d(total, last.weight, last.bias, padding=1)
    torch.testing.assert_close(mask_features, expected, atol=1e-5, rtol=1e-5)


def test_initial_values_of_the_heads():
    for head in build(conv_dim=128).heads:
        assert head[0].weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.05)
