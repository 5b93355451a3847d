"""Pixel decoders of MaskFormer: a feature pyramid, alone or over a transformer encoder of the coarsest map.

The pyramid is that of "Feature Pyramid Networks for Object Detection" with norms, and hands down each map
after its 3x3 convolution. Table 4e of the Mask2Former paper calls the one with the encoder "FPN".

Shapes: `B` images, `C` channels, `h, w` the sides of a map, `H, W` the sides of the padded image.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.modeling.layers.conv import init_c2_xavier, memory_format, same_size_conv
from mask2former.modeling.layers.position import sine_position
from mask2former.modeling.layers.transformer import TransformerEncoder
from mask2former.structures import ShapeSpec
from mask2former.utils.registry import SEM_SEG_HEADS


class FeaturePyramid(nn.Module):
    """A top-down pyramid over the backbone's maps, and mask features of its finest map.

    Args:
        input_shape: the maps by name, in any order.
        conv_dim: the width of the pyramid.
        norm: of all convolutions but the last; "" gives them a bias instead.

    Raises:
        ValueError: fewer than two maps, or groups that do not divide the width.
    """

    def __init__(self, *, input_shape: dict[str, ShapeSpec], conv_dim: int, mask_dim: int, norm: str) -> None:
        super().__init__()
        names = coarsest_first(input_shape)
        self.levels = dict(zip(range(len(names), 0, -1), names, strict=True))  # from the coarsest down to 1
        self.memory_shape = [ShapeSpec(conv_dim, input_shape[name].stride) for name in names[:-1]]
        self.mask_dim = mask_dim
        for level, name in self.levels.items():
            channels = input_shape[name].channels
            if level < len(names):
                self.add_module(f"adapter_{level}", same_size_conv(channels, conv_dim, 1, norm))
                channels = conv_dim
            layer = same_size_conv(channels, conv_dim, 3, norm, activation=torch.relu_)
            self.add_module(f"layer_{level}", layer)
        self.mask_features = init_c2_xavier(nn.Conv2d(conv_dim, mask_dim, 3, padding=1))

    def pyramid(self, features: dict[str, Tensor]) -> list[Tensor]:
        """Return the pyramid's maps (B, C, h, w), coarsest first."""
        maps: list[Tensor] = []
        for level, name in self.levels.items():
            x = features[name]
            if maps:
                enlarged = F.interpolate(maps[-1], size=x.shape[2:], mode="nearest")
                x = enlarged.add_(self.get_submodule(f"adapter_{level}")(x))
            maps.append(self.get_submodule(f"layer_{level}")(x))
        return maps

    def fuse(self, maps: list[Tensor]) -> Tensor:
        """Return the map (B, C, H/4, W/4) that the mask features are computed from."""
        return maps[-1]

    def decode(self, features: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return mask features (B, mask_dim, H/4, W/4) and memory: maps (B, C, h, w), coarsest first."""
        maps = self.pyramid(features)
        return self.mask_features(self.fuse(maps)), maps[:-1]


class BasePixelDecoder(FeaturePyramid):
    """The pyramid alone."""

    def forward(self, features: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return mask features (B, mask_dim, H/4, W/4) and memory: maps (B, C, h, w), coarsest first."""
        return self.decode(features)


class MapTransformer(nn.Module):
    """A transformer encoder over the cells of one map."""

    def __init__(self, **encoder: Any) -> None:
        super().__init__()
        self.encoder = TransformerEncoder(**encoder)

    def forward(self, x: Tensor) -> Tensor:
        """Encode a map x (B, C, h, w)."""
        shape = (x.shape[2], x.shape[3])
        cells = x.flatten(2).transpose(1, 2)
        encoded = self.encoder(cells, sine_position(shape, x.shape[1], x.device))
        return encoded.transpose(1, 2).unflatten(2, shape).contiguous(memory_format=memory_format(x))


class TransformerEncoderPixelDecoder(FeaturePyramid):
    """The pyramid, on the coarsest map as a transformer encoder leaves it.

    `encoded_shape` are the channels and the stride of that map. Arguments and errors are those of
    `FeaturePyramid` and `TransformerEncoder`.
    """

    def __init__(
        self, *, input_shape: dict[str, ShapeSpec], conv_dim: int, mask_dim: int, norm: str, **encoder: Any
    ) -> None:
        coarsest = coarsest_first(input_shape)[0]
        shape = input_shape[coarsest]  # maybe Detectron2's, which is a tuple of four
        encoded_shape = ShapeSpec(conv_dim, shape.stride)
        super().__init__(
            input_shape={**input_shape, coarsest: encoded_shape},
            conv_dim=conv_dim,
            mask_dim=mask_dim,
            norm=norm,
        )
        self.coarsest = coarsest
        self.encoded_shape = encoded_shape
        self.input_proj = init_c2_xavier(nn.Conv2d(shape.channels, conv_dim, 1))
        self.transformer = MapTransformer(width=conv_dim, **encoder)

    def forward(self, features: dict[str, Tensor]) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return mask features (B, mask_dim, H/4, W/4), memory, and the encoded map.

        Memory is maps (B, C, h, w), coarsest first; the encoded map is of the size of the first.
        """
        encoded = self.transformer(self.input_proj(features[self.coarsest]))
        return *self.decode({**features, self.coarsest: encoded}), encoded


def coarsest_first(input_shape: dict[str, ShapeSpec]) -> list[str]:
    """Return the names of the maps by decreasing stride.

    Raises:
        ValueError: fewer than two maps.
    """
    if len(input_shape) < 2:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.IN_FEATURES is {list(input_shape)}; a pyramid needs at least two maps"
        )
    return sorted(input_shape, key=lambda name: -input_shape[name].stride)


def pyramid_arguments(cfg: Any) -> dict[str, Any]:
    """Return what a config says about the convolutions of a pyramid."""
    head = cfg.MODEL.SEM_SEG_HEAD
    return {"conv_dim": head.CONVS_DIM, "mask_dim": head.MASK_DIM, "norm": head.NORM}


def encoder_arguments(cfg: Any) -> dict[str, Any]:
    """Return what a config says about the transformer encoder of a pixel decoder, besides its width."""
    decoder = cfg.MODEL.MASK_FORMER
    return {
        "num_layers": cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS,
        "num_heads": decoder.NHEADS,
        "dim_feedforward": decoder.DIM_FEEDFORWARD,
        "dropout": decoder.DROPOUT,
        "pre_norm": decoder.PRE_NORM,
        "activation_checkpointing": cfg.MODEL.ACTIVATION_CHECKPOINTING,
    }


@SEM_SEG_HEADS.register_as("BasePixelDecoder")
def build_base_pixel_decoder(cfg: Any, input_shape: dict[str, ShapeSpec]) -> BasePixelDecoder:
    """Build the pyramid of a config for the backbone's maps `input_shape`."""
    return BasePixelDecoder(input_shape=input_shape, **pyramid_arguments(cfg))


@SEM_SEG_HEADS.register_as("TransformerEncoderPixelDecoder")
def build_transformer_encoder_pixel_decoder(
    cfg: Any, input_shape: dict[str, ShapeSpec]
) -> TransformerEncoderPixelDecoder:
    """Build the pyramid with the encoder of a config for the backbone's maps `input_shape`."""
    return TransformerEncoderPixelDecoder(
        input_shape=input_shape, **pyramid_arguments(cfg), **encoder_arguments(cfg)
    )
