"""Pixel decoder: deformable attention over the coarse maps, then one step of a feature pyramid to stride 4.

Section 3.2.1 of the paper. With gradients it runs in float32 even under autocast, as the published models
were trained, unless SOLVER.AMP.PIXEL_DECODER is set. Without gradients it follows autocast, except for the
sampling locations.

Shapes: `B` images, `C` channels, `L` levels, `S` cells of the L maps together, `h, w` the sides of a
map, `H, W` the sides of the padded image.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.modeling.layers.activation_checkpointing import checkpoint_activations
from mask2former.modeling.layers.attention import MapSequence, MSDeformAttn, map_sequence
from mask2former.modeling.layers.chunking import map_chunks, should_chunk
from mask2former.modeling.layers.conv import ConvNorm, init_c2_xavier, memory_format
from mask2former.modeling.layers.feed_forward import feed_forward
from mask2former.modeling.layers.norm import get_norm
from mask2former.modeling.layers.position import sine_position
from mask2former.structures import ShapeSpec
from mask2former.utils.registry import SEM_SEG_HEADS

NUM_POINTS = 4  # per head and level, in every published model


class EncoderLayer(nn.Module):
    """Deformable self-attention, then a feed-forward network; each with dropout, residual, then norm."""

    def __init__(
        self, *, width: int, num_heads: int, num_levels: int, dim_feedforward: int, dropout: float
    ) -> None:
        super().__init__()
        self.self_attn = MSDeformAttn(
            width=width, num_heads=num_heads, num_levels=num_levels, num_points=NUM_POINTS
        )
        self.norm1 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, x: Tensor, position: Tensor, maps: MapSequence) -> Tensor:
        """Update cells x (B, S, C) with position (S, C)."""
        return self._update(x, self.self_attn(x + position, x, maps))

    def infer_(self, x: Tensor, position: Tensor, maps: MapSequence) -> None:
        """Compute `forward` without gradients, in place and in chunks: updates of cells are independent."""
        for image in x.split(1):
            values = self.self_attn.project(image)

            def update(x: Tensor, position: Tensor, centers: Tensor, values: Tensor = values) -> Tensor:
                attended = self.self_attn.attend((x + position)[None], values, maps.shapes, centers)
                return self._update(x, attended[0])

            map_chunks(update, self.linear1.out_features, image[0], image[0], position, maps.centers)

    def _update(self, x: Tensor, attended: Tensor) -> Tensor:
        """Finish the layer for cells x (..., C), given their attention updates of the same shape."""
        x = self.norm1(x + self.dropout(attended))
        update = feed_forward(x, self.linear1, self.linear2, self.dropout)
        return self.norm2(x + self.dropout(update))


class Encoder(nn.Module):
    """A stack of encoder layers."""

    def __init__(self, *, num_layers: int, activation_checkpointing: bool, **layer: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(**layer) for _ in range(num_layers))
        self.activation_checkpointing = activation_checkpointing

    def forward(self, x: Tensor, position: Tensor, maps: MapSequence) -> Tensor:
        """Apply all layers to x (B, S, C) with position (S, C)."""
        if should_chunk(x):
            x = x.clone()
            for layer in self.layers.children():
                assert isinstance(layer, EncoderLayer)
                layer.infer_(x, position, maps)
            return x
        for layer in self.layers:
            inputs = (x, position, maps)
            x = checkpoint_activations(layer, *inputs) if self.activation_checkpointing else layer(*inputs)
        return x


class MultiScaleTransformer(nn.Module):
    """The encoder over the concatenated cells of L maps, with one learned vector per level."""

    def __init__(self, *, width: int, num_levels: int, **encoder: Any) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.randn(num_levels, width))
        self.encoder = Encoder(width=width, num_levels=num_levels, **encoder)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Encode L maps (B, C, h, w) to maps of the same shapes, views of one (B, S, C) sequence."""
        shapes = tuple((feature.shape[2], feature.shape[3]) for feature in features)
        sequence = torch.cat([feature.flatten(2).transpose(1, 2) for feature in features], dim=1)
        width, device = sequence.shape[2], sequence.device
        levels = zip(shapes, self.level_embed, strict=True)
        positions = torch.cat([sine_position(shape, width, device) + level for shape, level in levels])
        encoded = self.encoder(sequence, positions, map_sequence(shapes, device))
        parts = encoded.split([height * width for height, width in shapes], dim=1)
        return [
            part.unflatten(1, shape).permute(0, 3, 1, 2) for part, shape in zip(parts, shapes, strict=True)
        ]


class MSDeformAttnPixelDecoder(nn.Module):
    """Pixel decoder that gives mask features at the finest stride and the transformer decoder's memory.

    Args:
        input_shape: the backbone's maps by name: `transformer_in_features`, in any order, and one finer map.
        conv_dim: the width of the encoder and of the pyramid.
        norm: of the two convolutions at the finest stride; "" gives them a bias instead.
        autocast_in_training: also follow autocast with gradients, except for the sampling.

    Raises:
        ValueError: unknown features, not exactly one finer map, or a width that groups or heads do not
            divide.
    """

    def __init__(
        self,
        *,
        input_shape: dict[str, ShapeSpec],
        transformer_in_features: list[str],
        conv_dim: int,
        mask_dim: int,
        norm: str,
        num_layers: int,
        num_heads: int,
        dim_feedforward: int,
        dropout: float,
        activation_checkpointing: bool,
        autocast_in_training: bool = False,
    ) -> None:
        super().__init__()
        self.autocast_in_training = autocast_in_training
        self.fine_feature, self.coarse_features = _split_features(input_shape, transformer_in_features)
        coarse_shapes = [input_shape[name] for name in self.coarse_features]
        self.memory_shape = [ShapeSpec(conv_dim, shape.stride) for shape in coarse_shapes]
        self.mask_dim = mask_dim
        self.input_proj = nn.ModuleList(_conv_group_norm(shape.channels, conv_dim) for shape in coarse_shapes)
        self.transformer = MultiScaleTransformer(
            width=conv_dim,
            num_levels=len(coarse_shapes),
            num_layers=num_layers,
            num_heads=num_heads,
            dim_feedforward=dim_feedforward,
            dropout=dropout,
            activation_checkpointing=activation_checkpointing,
        )
        channels = input_shape[self.fine_feature].channels
        bias = norm == ""
        self.adapter_1 = ConvNorm(channels, conv_dim, 1, bias=bias, norm=get_norm(norm, conv_dim))
        self.layer_1 = ConvNorm(
            conv_dim, conv_dim, 3, padding=1, bias=bias, norm=get_norm(norm, conv_dim), activation=torch.relu_
        )
        self.mask_features = nn.Conv2d(conv_dim, mask_dim, 1)
        for convolution in (self.adapter_1, self.layer_1, self.mask_features):
            init_c2_xavier(convolution)

    def forward(self, features: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return mask features (B, mask_dim, H/4, W/4) and memory: L maps (B, C, h, w), coarsest first."""
        device = features[self.fine_feature].device.type
        follows = self.autocast_in_training or not torch.is_grad_enabled()
        half = torch.is_autocast_enabled(device) and follows
        if not half:
            features = {name: x.float() for name, x in features.items()}
        with torch.autocast(device, enabled=half):
            levels = zip(self.input_proj, self.coarse_features, strict=True)
            memory = self.transformer([project(features[name]) for project, name in levels])
            fine = features[self.fine_feature]
            # Memory is a channels-last view; copying the small map avoids mixed layouts of large ones.
            coarse = memory[-1].contiguous(memory_format=memory_format(fine))
            enlarged = F.interpolate(coarse, size=fine.shape[2:], mode="bilinear", align_corners=False)
            return self.mask_features(self.layer_1(enlarged.add_(self.adapter_1(fine)))), memory


def _split_features(input_shape: dict[str, ShapeSpec], coarse: list[str]) -> tuple[str, list[str]]:
    """Return the name of the finest map, and the other names from the coarsest to the finest."""
    unknown = set(coarse) - set(input_shape)
    if unknown or not coarse:
        raise ValueError(
            "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES is "
            f"{list(coarse)}, which must be some of MODEL.SEM_SEG_HEAD.IN_FEATURES {list(input_shape)}"
        )
    *coarser, finest = sorted(input_shape, key=lambda name: -input_shape[name].stride)
    if set(coarser) != set(coarse):
        raise ValueError(
            f"of MODEL.SEM_SEG_HEAD.IN_FEATURES {list(input_shape)}, all but the finest must be in "
            f"DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES, which is {list(coarse)}"
        )
    return finest, coarser


def _conv_group_norm(channels: int, width: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, width, 1)
    nn.init.xavier_uniform_(convolution.weight)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    norm = get_norm("GN", width)
    assert norm is not None
    return nn.Sequential(convolution, norm)


@SEM_SEG_HEADS.register_as("MSDeformAttnPixelDecoder")
def build_msdeformattn_pixel_decoder(cfg: Any, input_shape: dict[str, ShapeSpec]) -> MSDeformAttnPixelDecoder:
    """Build the pixel decoder of a config for the backbone's maps `input_shape`."""
    head, decoder = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    return MSDeformAttnPixelDecoder(
        input_shape=input_shape,
        transformer_in_features=head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES,
        conv_dim=head.CONVS_DIM,
        mask_dim=head.MASK_DIM,
        norm=head.NORM,
        num_layers=head.TRANSFORMER_ENC_LAYERS,
        num_heads=decoder.NHEADS,
        dim_feedforward=head.TRANSFORMER_ENC_DIM_FEEDFORWARD,
        dropout=decoder.DROPOUT,
        activation_checkpointing=cfg.MODEL.ACTIVATION_CHECKPOINTING,
        autocast_in_training=cfg.SOLVER.AMP.PIXEL_DECODER,
    )
