"""Pixel decoder: "FaPN: Feature-aligned Pyramid Network for Dense Image Prediction", both of its parts.

Each finer map is selected by channel attention; the coarser map is enlarged and aligned with it by a
deformable convolution before the two are added. This is the "FaPN" of Table 4e and of the Swin-L-FaPN rows:
with Swin-L it has the published 217 million parameters. (FaPN's own release for MaskFormer only aligns.)

Shapes: `B` images, `C` channels, `h, w` the sides of a map, `H, W` the sides of the padded image.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.modeling.layers.conv import ConvNorm, init_c2_xavier, same_size_conv
from mask2former.modeling.layers.deformable_conv import ModulatedDeformConv
from mask2former.modeling.layers.norm import get_norm
from mask2former.modeling.pixel_decoder.fpn import coarsest_first, pyramid_arguments
from mask2former.structures import ShapeSpec
from mask2former.utils.registry import SEM_SEG_HEADS

GROUPS = 8  # of channels with the same offsets, in FaPN's own code


class FeatureSelection(nn.Module):
    """Channel attention that strengthens some channels, then a projection (section 3.2)."""

    def __init__(self, in_channels: int, out_channels: int, norm: str) -> None:
        super().__init__()
        self.attention = init_c2_xavier(nn.Conv2d(in_channels, in_channels, 1, bias=norm == ""))
        self.projection = init_c2_xavier(nn.Conv2d(in_channels, out_channels, 1, bias=norm == ""))

    def forward(self, x: Tensor) -> Tensor:
        """Select from x (B, C_in, h, w): (B, C_out, h, w)."""
        importance = self.attention(x.mean((2, 3), keepdim=True)).sigmoid()
        return self.projection(x + x * importance)


class FeatureAlignment(nn.Module):
    """The sum of a selected map and a coarser one, which is enlarged, then aligned (section 3.1)."""

    def __init__(self, in_channels: int, width: int, norm: str) -> None:
        super().__init__()
        self.selection = FeatureSelection(in_channels, width, norm)
        offset = ConvNorm(2 * width, width, 1, bias=False, norm=get_norm(norm, width))
        self.offset = init_c2_xavier(offset)
        self.deformable = ModulatedDeformConv(width, width, 3, groups=GROUPS)

    def forward(self, x: Tensor, coarser: Tensor) -> Tensor:
        """Add to x (B, C_in, h, w) a coarser map (B, C, h / 2, w / 2): (B, C, h, w)."""
        lateral = self.selection(x)
        enlarged = F.interpolate(coarser, size=x.shape[2:], mode="bilinear", align_corners=False)
        offset_features = self.offset(torch.cat((lateral, 2 * enlarged), dim=1))
        return self.deformable(enlarged, offset_features).relu_() + lateral


class FaPNPixelDecoder(nn.Module):
    """A top-down pyramid with selection and alignment; memory is its maps after a 3x3 convolution each.

    Args:
        input_shape: the backbone's maps by name, in any order.
        conv_dim: the width of the pyramid.
        norm: of all convolutions but the last; "" gives most of them a bias instead.

    Raises:
        ValueError: fewer than two maps, or groups (of the norm, or those with the same offsets) that do not
            divide the width.
    """

    def __init__(self, *, input_shape: dict[str, ShapeSpec], conv_dim: int, mask_dim: int, norm: str) -> None:
        super().__init__()
        self.names = coarsest_first(input_shape)
        shapes = [input_shape[name] for name in self.names]
        self.memory_shape = [ShapeSpec(conv_dim, shape.stride) for shape in shapes[:-1]]
        self.mask_dim = mask_dim
        self.coarsest = same_size_conv(shapes[0].channels, conv_dim, 1, norm)
        self.alignments = nn.ModuleList(
            FeatureAlignment(shape.channels, conv_dim, norm) for shape in shapes[1:]
        )
        self.outputs = nn.ModuleList(same_size_conv(conv_dim, conv_dim, 3, norm) for _ in shapes[1:])
        self.mask_features = init_c2_xavier(nn.Conv2d(conv_dim, mask_dim, 3, padding=1))

    def forward(self, features: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return mask features (B, mask_dim, H/4, W/4) and memory: maps (B, C, h, w), coarsest first."""
        x = self.coarsest(features[self.names[0]])
        maps = [x]
        for name, align, output in zip(self.names[1:], self.alignments, self.outputs, strict=True):
            x = align(features[name], x)
            maps.append(output(x))
        return self.mask_features(maps[-1]), maps[:-1]


@SEM_SEG_HEADS.register_as("FaPNPixelDecoder")
def build_fapn_pixel_decoder(cfg: Any, input_shape: dict[str, ShapeSpec]) -> FaPNPixelDecoder:
    """Build the pixel decoder of a config for the backbone's maps `input_shape`."""
    return FaPNPixelDecoder(input_shape=input_shape, **pyramid_arguments(cfg))
