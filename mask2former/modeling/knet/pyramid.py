"""K-Net's pixel features: a feature pyramid whose maps are summed at stride 8.

The pyramid is that of "Feature Pyramid Networks for Object Detection", without norms. The sum is that of
"Panoptic Feature Pyramid Networks" (section 3), at stride 8 instead of 4 and with a position encoding on the
coarsest map (K-Net §3.4). Modules are named as in the public checkpoints, but for the norm of a convolution.

Shapes: `B` images, `C` channels, `h, w` the sides of a map, `H, W` those of the padded image.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mask2former.modeling.layers.conv import ConvNorm, same_size_conv
from mask2former.modeling.layers.norm import get_norm
from mask2former.modeling.layers.position import sine_position
from mask2former.modeling.pixel_decoder.fpn import coarsest_first
from mask2former.structures import ShapeSpec

CONV_STD = 0.01  # of the initial weights of convolutions with a norm


class KernelPyramid(nn.Module):
    """Pyramid of the backbone's maps, and two features of their sum: of instances and of semantic classes.

    Args:
        input_shape: the maps by name: the finest at stride 4, the next at stride 8, and so on.
        width: C, of all maps.
        norm: of the convolutions after the pyramid.

    Raises:
        ValueError: fewer than two maps, or groups that do not divide the width.
    """

    def __init__(self, *, input_shape: dict[str, ShapeSpec], width: int, norm: str) -> None:
        super().__init__()
        self.names = coarsest_first(input_shape)[::-1]  # finest first
        self.lateral_convs = nn.ModuleList(
            _plain_conv(input_shape[name].channels, width, 1) for name in self.names
        )
        self.fpn_convs = nn.ModuleList(_plain_conv(width, width, 3) for _ in self.names)
        self.convs_all_levels = nn.ModuleList(_to_stride_8(i, width, norm) for i in range(len(self.names)))
        self.conv_pred = norm_conv(width, 1, norm)
        self.aux_convs = nn.ModuleList([norm_conv(width, 1, norm)])

    def forward(self, features: dict[str, Tensor]) -> list[Tensor]:
        """Return the instance and the semantic features, (B, C, H/8, W/8) each."""
        maps = self.pyramid(features)
        coarsest = maps[-1]
        position = sine_position((coarsest.shape[2], coarsest.shape[3]), coarsest.shape[1], coarsest.device)
        maps[-1] = coarsest + position.T.unflatten(1, coarsest.shape[2:])
        total = self.convs_all_levels[0](maps[0])
        for convs, x in zip(self.convs_all_levels[1:], maps[1:], strict=True):
            x = convs(x)
            if x.shape[2:] != total.shape[2:]:  # the image is not a multiple of the coarsest stride
                x = F.interpolate(x, size=total.shape[2:], mode="bilinear", align_corners=False)
            total = total + x
        return [self.conv_pred(total), self.aux_convs[0](total)]

    def pyramid(self, features: dict[str, Tensor]) -> list[Tensor]:
        """Return the pyramid's maps (B, C, h, w), finest first."""
        laterals = [conv(features[name]) for name, conv in zip(self.names, self.lateral_convs, strict=True)]
        for finer, coarser in zip(laterals[-2::-1], laterals[:0:-1], strict=True):  # from the coarsest down
            finer += F.interpolate(coarser, size=finer.shape[2:], mode="nearest")
        return [conv(x) for conv, x in zip(self.fpn_convs, laterals, strict=True)]


def norm_conv(width: int, kernel_size: int, norm: str, stride: int = 1) -> ConvNorm:
    """Return a convolution with norm and ReLU, initialized as K-Net's; raise ValueError as `get_norm`."""
    convolution = ConvNorm(
        width,
        width,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        bias=norm == "",
        norm=get_norm(norm, width),
        activation=torch.relu_,
    )
    nn.init.normal_(convolution.weight, std=CONV_STD)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return convolution


def _plain_conv(in_channels: int, width: int, kernel_size: int) -> ConvNorm:
    convolution = same_size_conv(in_channels, width, kernel_size, norm="")
    nn.init.xavier_uniform_(convolution.weight)
    return convolution


def _to_stride_8(level: int, width: int, norm: str) -> nn.Sequential:
    """Return the convolutions that bring a map of stride 4 * 2**level to stride 8.

    The finest map takes one strided convolution; the others one a level, with upsampling by 2 between them.
    """
    if level == 0:
        return nn.Sequential(OrderedDict(conv0=norm_conv(width, 3, norm, stride=2)))
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for i in range(level):
        modules[f"conv{i}"] = norm_conv(width, 3, norm)
        if i < level - 1:
            modules[f"upsample{i}"] = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
    return nn.Sequential(modules)
