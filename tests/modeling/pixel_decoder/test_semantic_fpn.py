"""Semantic FPN: its mask features against plain torch."""

import pytest
import torch
import torch.nn.functional as F

from mask2former.modeling.pixel_decoder import SemanticFPNPixelDecoder
from mask2former.structures import ShapeSpec

SHAPES = {f"res{i}": ShapeSpec(4 * i, 2**i) for i in (2, 3, 4, 5)}
ENCODER = {"num_layers": 1, "num_heads": 4, "dim_feedforward": 16, "dropout": 0.0}
ENCODER |= {"pre_norm": False, "activation_checkpointing": False}


def build(**changes):
    torch.manual_seed(0)
    sizes = {"input_shape": SHAPES, "conv_dim": 32, "mask_dim": 12, "norm": "GN"}
    return SemanticFPNPixelDecoder(**(sizes | ENCODER | changes))


def test_mask_features_are_of_the_sum_of_all_maps():
    decoder = build()
    features = {
        name: torch.randn(2, shape.channels, 64 // shape.stride, 96 // shape.stride)
        for name, shape in SHAPES.items()
    }
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
