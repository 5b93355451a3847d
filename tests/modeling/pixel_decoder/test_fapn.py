"""FaPN: against plain torch where nothing moves, and its alignment where all does."""

import pytest
import torch
import torch.nn.functional as F
from pixel_decoder_cases import SHAPES, draw_maps

from mask2former.modeling.pixel_decoder import FaPNPixelDecoder
from mask2former.modeling.pixel_decoder.fapn import FeatureAlignment
from mask2former.structures import ShapeSpec


def build(**changes):
    torch.manual_seed(0)
    sizes = {"input_shape": SHAPES, "conv_dim": 32, "mask_dim": 12, "norm": "GN"}
    return FaPNPixelDecoder(**(sizes | changes))


@pytest.fixture
def features():
    return draw_maps()


def normed(convolution, x, padding=0):
    x = F.conv2d(x, convolution.weight, padding=padding)
    return F.group_norm(x, 32, convolution.norm.weight, convolution.norm.bias)


def test_at_the_start_it_is_plain_torch(features):
    """The offsets are zero then, and the modulation is one half."""
    decoder = build()
    y = normed(decoder.coarsest, features["res5"])
    maps = [y]
    for name, align, output in zip(
        ("res4", "res3", "res2"), decoder.alignments, decoder.outputs, strict=True
    ):
        x, selection = features[name], align.selection
        importance = torch.einsum("oi,bi->bo", selection.attention.weight[:, :, 0, 0], x.mean((2, 3)))
        selected = x * (1 + importance.sigmoid())[:, :, None, None]
        lateral = F.conv2d(selected, selection.projection.weight)
        enlarged = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
        y = lateral + F.conv2d(enlarged, align.deformable.weight / 2, padding=1).relu()
        maps.append(normed(output, y, padding=1))  # the next level continues with y
    mask_features, memory = decoder(features)
    torch.testing.assert_close(memory, maps[:3], atol=1e-5, rtol=1e-5)
    last = decoder.mask_features
    expected = F.conv2d(maps[3], last.weight, last.bias, padding=1)
    torch.testing.assert_close(mask_features, expected, atol=1e-5, rtol=1e-5)


def test_offsets_come_from_both_maps_and_move_the_coarser_one():
    torch.manual_seed(0)
    align = FeatureAlignment(6, 32, "GN")
    torch.nn.init.normal_(align.deformable.conv_offset_mask.weight)
    x, coarser = torch.randn(2, 6, 8, 12), torch.randn(2, 32, 4, 6)
    lateral = align.selection(x)
    enlarged = F.interpolate(coarser, scale_factor=2, mode="bilinear", align_corners=False)
    offset_features = normed(align.offset, torch.cat((lateral, 2 * enlarged), dim=1))
    expected = align.deformable(enlarged, offset_features).relu() + lateral
    torch.testing.assert_close(align(x, coarser), expected, atol=1e-5, rtol=1e-5)


def test_without_norm_all_convolutions_but_that_of_the_offsets_have_a_bias():
    names = build(norm="").state_dict()
    without = {name for name in names if name.endswith(".weight")} - {
        name.replace(".bias", ".weight") for name in names if name.endswith(".bias")
    }
    assert without == {f"alignments.{i}.offset.weight" for i in range(3)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv_dim": 36, "norm": ""}, "has 8 groups, which do not divide 36 channels"),
        ({"input_shape": {"res2": ShapeSpec(8, 4)}}, "at least two maps"),
    ],
)
def test_wrong_values_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)
