"""Positions of other grids and patches of other sizes."""

import pytest
import torch
from small_vits import draw, small_vit
from torch.nn import functional as F

from mask2former.modeling.vit.backbone import SimplePyramid
from mask2former.modeling.vit.positions import resize_grid
from mask2former.weights.adapt import adapt
from mask2former.weights.load import load_weights

PATCHES = "backbone.vit.patch_embed.proj.weight"
TABLE = "backbone.vit.blocks.0.attn.relative_position_bias_table"


def upsampled(patches, size):
    return F.interpolate(patches, size=size, mode="bicubic", antialias=True)


@pytest.mark.parametrize(("old", "new"), [(14, 16), (16, 32)])
def test_resampled_kernels_give_the_same_for_resized_patches(old, new):
    kernels, patches = torch.randn(8, 3, old, old), torch.randn(5, 3, old, old)
    resampled, note = adapt(PATCHES, kernels, torch.empty(8, 3, new, new))
    assert note == f"resampled: patch embedding (patches of {old} -> {new} pixels)"
    actual = F.conv2d(upsampled(patches, (new, new)), resampled)
    torch.testing.assert_close(actual, F.conv2d(patches, kernels), rtol=1e-3, atol=1e-3)


def test_a_resized_table_of_beit_keeps_the_rows_of_the_class_token():
    table = torch.randn(5 * 5 + 3, 2)  # of a grid of 3 x 3
    resized, note = adapt(TABLE, table, torch.empty(9 * 9 + 3, 2))  # 5 x 5
    assert note == "interpolated: relative position tables (window 3 -> 5)"
    assert torch.equal(resized[-3:], table[-3:])
    image = table[:25].T.reshape(1, 2, 5, 5)
    expected = F.interpolate(image, (9, 9), mode="bicubic")[0].flatten(1).T
    torch.testing.assert_close(resized[:-3], expected)


def test_a_table_without_the_class_token_does_not_fit_one_with_it():
    assert adapt(TABLE, torch.randn(25, 2), torch.empty(84, 2)) is None


def test_dinov2s_file_fits_patches_of_16_pixels_and_another_grid(tmp_path):
    """As EoMT starts from it: patches of 14 become 16, positions of a grid of 6 become one of 4."""
    given, model = draw(small_vit(patch_size=14)), SimplePyramid(small_vit(patch_size=16, position_grid=4))
    torch.save(given.state_dict(), tmp_path / "vit.pth")
    holder = torch.nn.Module()
    holder.backbone = model
    report = load_weights(holder, tmp_path / "vit.pth")
    assert not report.problems and sorted(report.adapted) == [PATCHES, "backbone.vit.pos_embed"]
    assert {name.split(".")[1] for name in report.untrained} == {"pyramid"}
    torch.testing.assert_close(model.vit.pos_embed, resize_grid(given.pos_embed, 4, 4))
    torch.testing.assert_close(model.vit.blocks[1].attn.qkv.weight, given.blocks[1].attn.qkv.weight)


@pytest.mark.parametrize(
    ("name", "shape", "wanted"),
    [
        ("backbone.vit.pos_embed", (1, 5, 8), (1, 9, 8)),  # not a square
        ("backbone.vit.pos_embed", (1, 0, 8), (1, 9, 8)),
        ("backbone.vit.pos_embed", (1, 4, 8), (1, 9, 16)),
        (PATCHES, (8, 3, 0, 0), (8, 3, 16, 16)),
        (PATCHES, (8, 4, 14, 14), (8, 3, 16, 16)),
    ],
)
def test_other_shapes_do_not_fit(name, shape, wanted):
    assert adapt(name, torch.zeros(shape), torch.zeros(wanted)) is None
