"""SETR's multi-level aggregation against its formulas."""

import pytest
import torch
from torch.nn import functional as F

from mask2former.modeling.pixel_decoder.setr import SETRMLAPixelDecoder
from mask2former.structures import ShapeSpec

NAMES = ("res2", "res3", "res4", "res5")


def decoder(stride=16, mask_dim=16):
    torch.manual_seed(0)
    shapes = {name: ShapeSpec(8, stride) for name in NAMES}
    return SETRMLAPixelDecoder(input_shape=shapes, conv_dim=6, mask_dim=mask_dim, norm="").eval()


def convolved(convolution, x):
    padding = convolution.kernel_size[0] // 2
    return F.conv2d(x, convolution.weight, convolution.bias, padding=padding).clamp(min=0)


@torch.no_grad()
def test_each_branch_sees_the_sum_of_the_maps_from_the_last_to_its_own():
    model = decoder()
    features = {name: torch.randn(2, 8, 3, 5) for name in NAMES}
    projected = []
    for name, convolution in zip(NAMES, model.projections, strict=True):
        x = features[name]
        centered = x - x.mean(1, keepdim=True)
        projected.append(
            convolved(convolution, centered / (centered.square().mean(1, keepdim=True) + 1e-6).sqrt())
        )
    maps = [convolved(model.smoothings[i], sum(projected[3 - i :])) for i in range(4)]
    branches = [
        convolved(second, convolved(first, x))
        for (first, second), x in zip(model.branches, maps, strict=True)
    ]
    expected = [F.interpolate(x, size=(12, 20), mode="bilinear") for x in branches]
    mask_features, memory = model(features)
    torch.testing.assert_close(mask_features, torch.cat(expected, dim=1))
    torch.testing.assert_close(memory, maps)
    assert mask_features.std() > 0.01


@pytest.mark.parametrize("changes", [{"stride": 8}, {"mask_dim": 18}])
def test_maps_that_do_not_fit_are_an_error(changes):
    with pytest.raises(ValueError, match=r"needs maps at stride 16 \(MODEL.VIT_TAPS.PYRAMID False\)"):
        decoder(**changes)
