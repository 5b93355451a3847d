"""SETR's multi-level aggregation: sums of maps at stride 16, from last to first, enlarged to stride 4.

"Rethinking Semantic Segmentation from a Sequence-to-Sequence Perspective with Transformers" (CVPR 2021),
section 3.3, as mmsegmentation trains it. `mask2former.modeling.setr` has the head that classifies the maps.

Shapes: `B` images, `C` channels, `h, w` the sides of a map at stride 16, `H, W` those of an image.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mask2former.modeling.pixel_decoder.fpn import pyramid_arguments
from mask2former.modeling.pixel_decoder.upernet import relu_conv
from mask2former.modeling.vit.scaling import ChannelNorm
from mask2former.structures import ShapeSpec
from mask2former.utils.registry import SEM_SEG_HEADS

STRIDE, ENLARGEMENT = 16, 4


class SETRMLAPixelDecoder(nn.Module):
    """Projections of the maps, their sums from the last to the first, and a branch for each sum.

    Args:
        input_shape: maps of a vision transformer, all at stride 16, from the first block to the last.
        conv_dim: the width of the sums.
        mask_dim: the width of the mask features, which the branches share equally.
        norm: of all convolutions; "" gives them a bias instead.

    Raises:
        ValueError: maps of another stride, a mask_dim that they cannot share, or a norm that does not fit.
    """

    def __init__(self, *, input_shape: dict[str, ShapeSpec], conv_dim: int, mask_dim: int, norm: str) -> None:
        super().__init__()
        if any(shape.stride != STRIDE for shape in input_shape.values()) or mask_dim % len(input_shape):
            raise ValueError(
                f"SETRMLAPixelDecoder needs maps at stride {STRIDE} (MODEL.VIT_TAPS.PYRAMID False), whose "
                f"number divides MODEL.SEM_SEG_HEAD.MASK_DIM, which is {mask_dim}"
            )
        self.names = list(input_shape)
        self.mask_dim = mask_dim
        self.memory_shape = [ShapeSpec(conv_dim, STRIDE) for _ in self.names]
        widths = [shape.channels for shape in input_shape.values()]
        branch = mask_dim // len(widths)
        self.norms = nn.ModuleList(ChannelNorm(width, eps=1e-6) for width in widths)
        self.projections = nn.ModuleList(relu_conv(width, conv_dim, 1, norm) for width in widths)
        self.smoothings = nn.ModuleList(relu_conv(conv_dim, conv_dim, 3, norm) for _ in widths)
        self.branches = nn.ModuleList(
            nn.Sequential(relu_conv(conv_dim, branch, 3, norm), relu_conv(branch, branch, 3, norm))
            for _ in widths
        )

    def forward(self, features: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return mask features (B, mask_dim, 4 * h, 4 * w) and memory: the sums (B, C, h, w), last first.

        At sides that 16 does not divide, the mask features exceed the image.
        """
        parts = zip(self.names, self.norms, self.projections, strict=True)
        projected = [project(norm(features[name])) for name, norm, project in parts]
        sums = [projected.pop()]
        while projected:
            sums.append(sums[-1] + projected.pop())
        maps = [smooth(x) for smooth, x in zip(self.smoothings, sums, strict=True)]
        enlarged = [
            F.interpolate(branch(x), scale_factor=ENLARGEMENT, mode="bilinear", align_corners=False)
            for branch, x in zip(self.branches, maps, strict=True)
        ]
        return torch.cat(enlarged, dim=1), maps


@SEM_SEG_HEADS.register_as("SETRMLAPixelDecoder")
def build_setr_mla_pixel_decoder(cfg: Any, input_shape: dict[str, ShapeSpec]) -> SETRMLAPixelDecoder:
    """Build the pixel decoder of a config for the backbone's maps `input_shape`."""
    return SETRMLAPixelDecoder(input_shape=input_shape, **pyramid_arguments(cfg))
