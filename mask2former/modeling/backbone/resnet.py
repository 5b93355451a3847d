"""ResNet 18 to 152 with Detectron2's names: `stem.conv1`, then stages `res2` .. `res5` of residual blocks.

Shapes: `B` images, `C` channels, `H, W` the padded image's sides.
"Deep Residual Learning for Image Recognition" (CVPR 2016).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mask2former.modeling.backbone.base import Backbone
from mask2former.modeling.layers.activation_checkpointing import checkpoint_activations
from mask2former.modeling.layers.conv import ConvNorm
from mask2former.modeling.layers.norm import freeze, get_norm
from mask2former.structures import ShapeSpec
from mask2former.utils.registry import BACKBONE

BLOCKS_PER_STAGE = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
BASIC_DEPTHS = (18, 34)  # two 3x3 convolutions a block; the others have bottlenecks
STAGES = ("res2", "res3", "res4", "res5")


def _conv(
    inputs: int,
    outputs: int,
    kernel: int,
    *,
    norm: str,
    stride: int = 1,
    groups: int = 1,
    dilation: int = 1,
    relu: bool = True,
) -> ConvNorm:
    conv = ConvNorm(
        inputs,
        outputs,
        kernel,
        stride=stride,
        padding=dilation * (kernel // 2),
        groups=groups,
        dilation=dilation,
        bias=False,
        norm=get_norm(norm, outputs),
        activation=F.relu_ if relu else None,
    )
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")  # c2_msra_fill
    return conv


class Stem(nn.Module):
    """7x7 convolution and max pool: (B, 3, H, W) -> (B, C, H/4, W/4)."""

    def __init__(self, inputs: int, outputs: int, *, norm: str) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs, 7, stride=2, norm=norm)

    def forward(self, images: Tensor) -> Tensor:
        return F.max_pool2d(self.conv1(images), 3, stride=2, padding=1)


class DeepLabStem(nn.Module):
    """Three 3x3 convolutions and max pool: (B, 3, H, W) -> (B, C, H/4, W/4)."""

    def __init__(self, inputs: int, outputs: int, *, norm: str) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs // 2, 3, stride=2, norm=norm)
        self.conv2 = _conv(outputs // 2, outputs // 2, 3, norm=norm)
        self.conv3 = _conv(outputs // 2, outputs, 3, norm=norm)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv3(self.conv2(self.conv1(images)))
        return F.max_pool2d(x, 3, stride=2, padding=1)


STEMS = {"basic": Stem, "deeplab": DeepLabStem}


class ResidualBlock(nn.Module):
    """relu(branch(x) + shortcut(x)); the shortcut is projected where width or resolution change."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, norm: str) -> None:
        super().__init__()
        projected = inputs != outputs or stride != 1
        self.shortcut = _conv(inputs, outputs, 1, stride=stride, norm=norm, relu=False) if projected else None

    def branch(self, x: Tensor) -> Tensor:
        """Compute the residual, before the sum."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H / stride, W / stride)."""
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return F.relu_(self.branch(x).add_(shortcut))


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, norm: str) -> None:
        super().__init__(inputs, outputs, stride=stride, norm=norm)
        self.conv1 = _conv(inputs, outputs, 3, stride=stride, norm=norm)
        self.conv2 = _conv(outputs, outputs, 3, norm=norm, relu=False)

    def branch(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))


class Bottleneck(ResidualBlock):
    """1x1 convolution to `width`, 3x3 in groups, 1x1 back; the stride is in the first or in the 3x3.

    The 3x3 convolution may be dilated.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        stride: int,
        norm: str,
        width: int,
        groups: int,
        stride_in_1x1: bool,
        dilation: int = 1,
    ) -> None:
        super().__init__(inputs, outputs, stride=stride, norm=norm)
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = _conv(inputs, width, 1, stride=first, norm=norm)
        self.conv2 = _conv(width, width, 3, stride=second, groups=groups, dilation=dilation, norm=norm)
        self.conv3 = _conv(width, outputs, 1, norm=norm, relu=False)

    def branch(self, x: Tensor) -> Tensor:
        return self.conv3(self.conv2(self.conv1(x)))


def _stage(inputs: int, outputs: int, *, stride: int, dilations: Sequence[int], **kind: Any) -> nn.Sequential:
    """Return a block for each dilation; the first changes width and resolution.

    They are bottlenecks if `kind` has a width. Others cannot be dilated.
    """
    blocks: list[nn.Module] = []
    for dilation in dilations:
        if "width" in kind:
            blocks.append(Bottleneck(inputs, outputs, stride=stride, dilation=dilation, **kind))
        else:
            blocks.append(BasicBlock(inputs, outputs, stride=stride, **kind))
        inputs, stride = outputs, 1
    return nn.Sequential(*blocks)


class ResNet(Backbone):
    """ResNet with the maps `stem`, `res2` .. `res5`, at strides 4, 4, 8, 16, 32 (or 16).

    Stages after the last requested one are not built.

    Args:
        depth: 18, 34 (basic blocks), 50, 101 or 152 (bottlenecks).
        res2_channels: width of res2; each later stage doubles it.
        width_per_group: of the bottlenecks of res2; doubles likewise. Basic blocks do not use it.
        freeze_at: 0 freezes nothing, 1 the stem, 2 the stem and res2, and so on.
        stem: one of `STEMS`.
        res5_dilations: of the three bottlenecks of res5.
        res5_stride: 2, or 1 for a map res5 as large as res4.

    Raises:
        ValueError: an unknown depth or stem, or dilations that do not fit the blocks.
    """

    def __init__(
        self,
        *,
        depth: int,
        in_channels: int = 3,
        stem_channels: int = 64,
        res2_channels: int = 256,
        groups: int = 1,
        width_per_group: int = 64,
        stride_in_1x1: bool = False,
        norm: str = "FrozenBN",
        out_features: Sequence[str] = STAGES,
        freeze_at: int = 0,
        checkpointing: bool = False,
        stem: str = "basic",
        res5_dilations: Sequence[int] = (1, 1, 1),
        res5_stride: int = 2,
    ) -> None:
        if depth not in BLOCKS_PER_STAGE:
            raise ValueError(f"MODEL.RESNETS.DEPTH is {depth}; known are {list(BLOCKS_PER_STAGE)}")
        if stem not in STEMS:
            raise ValueError(f"MODEL.RESNETS.STEM_TYPE is {stem!r}; known are {', '.join(STEMS)}")
        widths = [res2_channels * 2**i for i in range(len(STAGES))]
        shapes = {"stem": ShapeSpec(stem_channels, 4)}
        shapes |= {name: ShapeSpec(widths[i], 4 * 2**i) for i, name in enumerate(STAGES)}
        shapes["res5"] = ShapeSpec(widths[3], shapes["res4"].stride * res5_stride)
        super().__init__(shapes, out_features)
        self.checkpointing = checkpointing
        self.stem = STEMS[stem](in_channels, stem_channels, norm=norm)
        last = max(list(shapes).index(name) for name in self.output_shape())
        self.stages = STAGES[:last]
        inputs = stem_channels
        for i, name in enumerate(self.stages):
            kind: dict[str, Any] = {"norm": norm}
            if depth not in BASIC_DEPTHS:
                width = groups * width_per_group * 2**i
                kind |= {"width": width, "groups": groups, "stride_in_1x1": stride_in_1x1}
            dilations = [1] * BLOCKS_PER_STAGE[depth][i]
            if name == "res5" and depth not in BASIC_DEPTHS:
                dilations = _checked_dilations(res5_dilations, len(dilations))
            stride = (1, 2, 2, res5_stride)[i]
            self.add_module(name, _stage(inputs, widths[i], stride=stride, dilations=dilations, **kind))
            inputs = widths[i]
        for name in ("stem", *self.stages)[: max(freeze_at, 0)]:
            freeze(self.get_submodule(name))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map normalized images (B, 3, H, W) to the requested maps, channels last in memory."""
        # Convolutions keep this layout; with any other, a CPU would reorder before and after each.
        x = self.stem(images.contiguous(memory_format=torch.channels_last))
        maps = {"stem": x}
        for name in self.stages:
            for block in self.get_submodule(name).children():
                x = checkpoint_activations(block, x) if self.checkpointing else block(x)
            maps[name] = x
        return {name: maps[name] for name in self.output_shape()}


def _checked_dilations(dilations: Sequence[int], count: int) -> list[int]:
    if len(dilations) != count or min(dilations) < 1:
        raise ValueError(
            f"MODEL.RESNETS.RES5_MULTI_GRID is {list(dilations)}; it must be {count} positive dilations"
        )
    return list(dilations)


@BACKBONE.register()
def build_resnet_deeplab_backbone(cfg: Any, input_shape: ShapeSpec) -> ResNet:
    """Build DeepLab's ResNet, with its stem and dilated res5: MaskFormer's R101c, and DETR's DC5.

    Raises:
        ValueError: as `build_resnet_backbone`, or the depth has no bottlenecks to dilate.
    """
    keys = cfg.MODEL.RESNETS
    if keys.DEPTH in BASIC_DEPTHS:
        raise ValueError(
            f"MODEL.RESNETS.DEPTH is {keys.DEPTH}, without bottlenecks, which MODEL.BACKBONE.NAME "
            "build_resnet_deeplab_backbone dilates"
        )
    deeplab = {"stem": keys.STEM_TYPE, "res5_dilations": keys.RES5_MULTI_GRID}
    return build_resnet_backbone(cfg, input_shape, **deeplab, res5_stride=keys.RES5_STRIDE)


@BACKBONE.register()
def build_resnet_backbone(cfg: Any, input_shape: ShapeSpec, **deeplab: Any) -> ResNet:
    """Build the ResNet of MODEL.RESNETS for images of `input_shape.channels` channels.

    `deeplab` are further arguments of `ResNet`.

    Raises:
        ValueError: a value that is not supported, with its key.
    """
    keys = cfg.MODEL.RESNETS
    if keys.DEPTH in BASIC_DEPTHS and keys.RES2_OUT_CHANNELS != keys.STEM_OUT_CHANNELS:
        raise ValueError(
            f"MODEL.RESNETS.RES2_OUT_CHANNELS is {keys.RES2_OUT_CHANNELS}; with DEPTH {keys.DEPTH} "
            f"it must equal STEM_OUT_CHANNELS, {keys.STEM_OUT_CHANNELS}"
        )
    if keys.DEPTH in BASIC_DEPTHS and keys.NUM_GROUPS != 1:
        raise ValueError(
            f"MODEL.RESNETS.NUM_GROUPS is {keys.NUM_GROUPS}; with DEPTH {keys.DEPTH} it must be 1"
        )
    return ResNet(
        depth=keys.DEPTH,
        in_channels=input_shape.channels,
        stem_channels=keys.STEM_OUT_CHANNELS,
        res2_channels=keys.RES2_OUT_CHANNELS,
        groups=keys.NUM_GROUPS,
        width_per_group=keys.WIDTH_PER_GROUP,
        stride_in_1x1=keys.STRIDE_IN_1X1,
        norm=keys.NORM,
        out_features=keys.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        checkpointing=cfg.MODEL.ACTIVATION_CHECKPOINTING,
        **deeplab,
    )
