"""Pixel decoder: the "Semantic FPN" of Table 4e, from "Panoptic Feature Pyramid Networks" (section 3).

The mask features are computed from the sum of all maps of a pyramid, each brought to stride 4 by convolutions
and bilinear upsampling. The paper states neither their width nor the pyramid: those here, as wide as the
pyramid and over the encoder of the row "FPN", are the ones that have the published FLOPs.

Shapes: `B` images, `C` channels, `h, w` the sides of a map, `H, W` the sides of the padded image.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.modeling.layers.conv import same_size_conv
from mask2former.modeling.pixel_decoder.fpn import (
    TransformerEncoderPixelDecoder,
    encoder_arguments,
    pyramid_arguments,
)
from mask2former.structures import ShapeSpec
from mask2former.utils.registry import SEM_SEG_HEADS


class SemanticFPNPixelDecoder(TransformerEncoderPixelDecoder):
    """The pyramid over an encoder, with mask features of all its maps. Arguments and errors are its own."""

    def __init__(self, *, conv_dim: int, norm: str, **arguments: Any) -> None:
        super().__init__(conv_dim=conv_dim, norm=norm, **arguments)
        self.heads = nn.ModuleList(_upsampling_head(level - 1, conv_dim, norm) for level in self.levels)

    def fuse(self, maps: list[Tensor]) -> Tensor:
        """Return the sum (B, C, H/4, W/4) of all maps (B, C, h, w) as their heads enlarge them."""
        size = maps[-1].shape[2:]
        total = self.heads[-1](maps[-1])
        for head, x in zip(self.heads[:-1], maps[:-1], strict=True):
            x = head(x)
            if x.shape[2:] != size:  # the image is not a multiple of the coarsest stride
                x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
            total = total + x
        return total


def _upsampling_head(steps: int, width: int, norm: str) -> nn.Sequential:
    """Return `steps` times a convolution and an upsampling by 2, or without steps one convolution."""
    modules: list[nn.Module] = []
    for _ in range(max(steps, 1)):
        convolution = same_size_conv(width, width, 3, norm, activation=torch.relu_)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        modules.append(convolution)
        if steps:
            modules.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
    return nn.Sequential(*modules)


@SEM_SEG_HEADS.register_as("SemanticFPNPixelDecoder")
def build_semantic_fpn_pixel_decoder(cfg: Any, input_shape: dict[str, ShapeSpec]) -> SemanticFPNPixelDecoder:
    """Build the pixel decoder of a config for the backbone's maps `input_shape`."""
    return SemanticFPNPixelDecoder(
        input_shape=input_shape, **pyramid_arguments(cfg), **encoder_arguments(cfg)
    )
