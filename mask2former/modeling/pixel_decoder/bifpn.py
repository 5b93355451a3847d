"""Pixel decoder: the "BiFPN" of Table 4e, from "EfficientDet: Scalable and Efficient Object Detection".

Maps are fused from coarse to fine and back, several times. The configuration is fitted: neither the paper nor
its code states one, and this one (eight layers of the pyramid's width on four maps, separable convolutions,
over the encoder of the row "FPN") has the published FLOPs, but others have them too.

Shapes: `B` images, `C` channels, `h, w` the sides of a map, `H, W` the sides of the padded image.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.modeling.layers.conv import init_c2_xavier, same_size_conv
from mask2former.modeling.pixel_decoder.fpn import (
    MapTransformer,
    coarsest_first,
    encoder_arguments,
    pyramid_arguments,
)
from mask2former.structures import ShapeSpec
from mask2former.utils.registry import SEM_SEG_HEADS

NUM_LAYERS = 8  # fitted to the published FLOPs
EPSILON = 1e-4  # of the normalization of weights


class FusionNode(nn.Module):
    """A weighted mean of maps of one size, then SiLU and a separable 3x3 convolution."""

    def __init__(self, num_inputs: int, width: int, norm: str) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(num_inputs))
        depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.depthwise = init_c2_xavier(depthwise)
        self.pointwise = same_size_conv(width, width, 1, norm)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Fuse maps (B, C, h, w)."""
        weights = self.weights.relu()
        shares = weights / (weights.sum() + EPSILON)
        fused = functools.reduce(torch.add, map(torch.mul, shares, inputs))
        return self.pointwise(self.depthwise(F.silu(fused)))


class BiFPNLayer(nn.Module):
    """One way from the coarsest of L maps to the finest and one back."""

    def __init__(self, num_levels: int, width: int, norm: str) -> None:
        super().__init__()
        self.top_down = nn.ModuleList(FusionNode(2, width, norm) for _ in range(num_levels - 1))
        self.bottom_up = nn.ModuleList(FusionNode(3, width, norm) for _ in range(num_levels - 2))
        self.coarsest = FusionNode(2, width, norm)

    def forward(self, maps: list[Tensor], skipped: list[Tensor]) -> list[Tensor]:
        """Fuse L maps (B, C, h, w), coarsest first.

        `skipped` are the L - 2 maps between the coarsest and the finest as the way back reads them.
        """
        down = maps[:1]
        for node, x in zip(self.top_down, maps[1:], strict=True):
            down.append(node(x, F.interpolate(down[-1], size=x.shape[2:], mode="nearest")))
        up = down[-1:]
        inner = zip(self.bottom_up, reversed(skipped), reversed(down[1:-1]), strict=True)
        for node, x, fused in inner:
            up.append(node(x, fused, _halve(up[-1])))
        up.append(self.coarsest(maps[0], _halve(up[-1])))
        return up[::-1]


class BiFPNPixelDecoder(nn.Module):
    """BiFPN layers, on the coarsest map as a transformer encoder leaves it.

    Args:
        input_shape: the backbone's maps by name, in any order.
        conv_dim: the width of the encoder and of the layers.
        norm: of all convolutions but the last; "" gives them a bias instead.
        num_fusions: the number of BiFPN layers.
        encoder: arguments of `TransformerEncoder`, but the width.

    Raises:
        ValueError: fewer than two maps, or groups or heads that do not divide the width.
    """

    def __init__(
        self,
        *,
        input_shape: dict[str, ShapeSpec],
        conv_dim: int,
        mask_dim: int,
        norm: str,
        num_fusions: int,
        **encoder: Any,
    ) -> None:
        super().__init__()
        self.coarsest, *self.finer = coarsest_first(input_shape)
        shapes = [ShapeSpec(conv_dim, input_shape[name].stride) for name in (self.coarsest, *self.finer)]
        self.memory_shape, self.encoded_shape, self.mask_dim = shapes[:-1], shapes[0], mask_dim
        self.input_proj = init_c2_xavier(nn.Conv2d(input_shape[self.coarsest].channels, conv_dim, 1))
        self.transformer = MapTransformer(width=conv_dim, **encoder)
        widths = [input_shape[name].channels for name in self.finer]
        self.laterals = nn.ModuleList(same_size_conv(width, conv_dim, 1, norm) for width in widths)
        self.skipped_laterals = nn.ModuleList(
            same_size_conv(width, conv_dim, 1, norm) for width in widths[:-1]
        )
        self.layers = nn.ModuleList(BiFPNLayer(len(shapes), conv_dim, norm) for _ in range(num_fusions))
        self.mask_features = init_c2_xavier(nn.Conv2d(conv_dim, mask_dim, 3, padding=1))

    def forward(self, features: dict[str, Tensor]) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return mask features (B, mask_dim, H/4, W/4), memory, and the encoded map.

        Memory is maps (B, C, h, w), coarsest first; the encoded map is of the size of the first.
        """
        encoded = self.transformer(self.input_proj(features[self.coarsest]))
        finer = [features[name] for name in self.finer]
        maps = [encoded, *(lateral(x) for lateral, x in zip(self.laterals, finer, strict=True))]
        # In the first layer the way back reads the backbone's maps through projections of its own.
        skipped = [lateral(x) for lateral, x in zip(self.skipped_laterals, finer[:-1], strict=True)]
        for layer in self.layers:
            maps = layer(maps, skipped)
            skipped = maps[1:-1]
        return self.mask_features(maps[-1]), maps[:-1], encoded


def _halve(x: Tensor) -> Tensor:
    """Return the largest values of x (B, C, h, w) around every second cell; odd sides are rounded up."""
    return F.max_pool2d(x, 3, stride=2, padding=1)


@SEM_SEG_HEADS.register_as("BiFPNPixelDecoder")
def build_bifpn_pixel_decoder(cfg: Any, input_shape: dict[str, ShapeSpec]) -> BiFPNPixelDecoder:
    """Build the pixel decoder of a config for the backbone's maps `input_shape`."""
    return BiFPNPixelDecoder(
        input_shape=input_shape,
        num_fusions=NUM_LAYERS,
        **pyramid_arguments(cfg),
        **encoder_arguments(cfg),
    )
