"""Pixel decoder of UperNet ("Unified Perceptual Parsing for Scene Understanding", section 3.1).

The coarsest map is averaged over four grids; the others are added to it from coarse to fine. The mask
features are computed from all maps of that pyramid, enlarged to stride 4. `mask2former.modeling.upernet` has
the head that classifies them.

Shapes: `B` images, `C` channels, `h, w` the sides of a map, `H, W` the sides of the padded image.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from mask2former.modeling.layers.conv import ConvNorm, same_size_conv
from mask2former.modeling.layers.norm import SyncBatchNorm
from mask2former.modeling.pixel_decoder.fpn import coarsest_first, pyramid_arguments
from mask2former.structures import ShapeSpec
from mask2former.utils.comm import world_size
from mask2former.utils.registry import SEM_SEG_HEADS

GRIDS = (1, 2, 3, 6)  # cells a side of the averages of the coarsest map


class UperNetPixelDecoder(nn.Module):
    """Pyramid pooling, a top-down pyramid, and the fusion of its maps.

    Args:
        input_shape: the backbone's maps by name, in any order.
        conv_dim: the width of the pyramid.
        mask_dim: the width of the mask features.
        norm: of all convolutions; "" gives them a bias instead.

    Raises:
        ValueError: fewer than two maps, or a norm that is unknown or does not fit the width.
    """

    def __init__(self, *, input_shape: dict[str, ShapeSpec], conv_dim: int, mask_dim: int, norm: str) -> None:
        super().__init__()
        names = coarsest_first(input_shape)
        self.coarsest = names[0]
        self.finer = names[:0:-1]  # finest first, as checkpoints number them
        self.memory_shape = [ShapeSpec(conv_dim, input_shape[name].stride) for name in names[:-1]]
        self.mask_dim = mask_dim
        channels = input_shape[self.coarsest].channels
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), relu_conv(channels, conv_dim, 1, norm))
            for side in GRIDS
        )
        self.bottleneck = relu_conv(channels + len(GRIDS) * conv_dim, conv_dim, 3, norm)
        self.lateral_convs = nn.ModuleList(
            relu_conv(input_shape[name].channels, conv_dim, 1, norm) for name in self.finer
        )
        self.fpn_convs = nn.ModuleList(relu_conv(conv_dim, conv_dim, 3, norm) for _ in self.finer)
        self.fpn_bottleneck = relu_conv(len(input_shape) * conv_dim, mask_dim, 3, norm)

    def forward(self, features: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return mask features (B, mask_dim, H/4, W/4) and memory: maps (B, C, h, w), coarsest first.

        Raises:
            ValueError: a batch norm would have a single value for a channel, in training.
        """
        x = self.pooled(features[self.coarsest])
        maps = [x]
        levels = list(zip(self.finer, self.lateral_convs, self.fpn_convs, strict=True))
        for name, lateral, smooth in reversed(levels):
            finer = lateral(features[name])
            x = finer + _resized(x, finer)
            maps.append(smooth(x))
        enlarged = [_resized(x, maps[-1]) for x in reversed(maps)]
        return self.fpn_bottleneck(torch.cat(enlarged, dim=1)), maps[:-1]

    def pooled(self, x: Tensor) -> Tensor:
        """Return the coarsest map (B, C, h, w) with its averages over all grids, as wide as the pyramid."""
        if self.training:
            self._check_batch(len(x))
        averages = [_resized(average(x), x) for average in self.psp_modules]
        return self.bottleneck(torch.cat([x, *averages], dim=1))

    def _check_batch(self, images: int) -> None:
        norm = self.bottleneck.norm
        if not isinstance(norm, _BatchNorm):
            return
        normalized = images * (world_size() if isinstance(norm, SyncBatchNorm) else 1)
        if normalized < 2:
            raise ValueError(
                "UperNet's batch norm of one cell an image needs two images, but a step has one: raise "
                "SOLVER.IMS_PER_BATCH or lower SOLVER.ACCUMULATION_STEPS, or set MODEL.SEM_SEG_HEAD.NORM GN"
            )


def relu_conv(in_channels: int, out_channels: int, kernel_size: int, norm: str) -> ConvNorm:
    """Return a convolution that keeps the size, with norm and ReLU, initialized as mmsegmentation's."""
    convolution = same_size_conv(in_channels, out_channels, kernel_size, norm, activation=torch.relu_)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


@SEM_SEG_HEADS.register_as("UperNetPixelDecoder")
def build_upernet_pixel_decoder(cfg: Any, input_shape: dict[str, ShapeSpec]) -> UperNetPixelDecoder:
    """Build the pixel decoder of a config for the backbone's maps `input_shape`."""
    return UperNetPixelDecoder(input_shape=input_shape, **pyramid_arguments(cfg))
