"""MaskFormer's transformer decoder: DETR's, on one map, with queries that start from zero.

Section 3.2 of the MaskFormer paper. Every layer predicts; there is no prediction before the first one.

Shapes: `B` images, `Q` queries, `K` classes, `C` channels, `h, w` the sides of the map, `H, W` those of the
padded image.
"""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from mask2former.modeling.layers.conv import init_c2_xavier
from mask2former.modeling.layers.mlp import MLP
from mask2former.modeling.layers.position import sine_position
from mask2former.modeling.layers.transformer import TransformerDecoderLayer, TransformerEncoder
from mask2former.modeling.predictions import Prediction, Predictions
from mask2former.modeling.transformer_decoder.options import PUBLISHED, check_counts, decoder_options
from mask2former.structures import ShapeSpec
from mask2former.utils.registry import TRANSFORMER_DECODER


class DetrDecoder(nn.Module):
    """A stack of decoder layers, and the norm of what each of them hands to the heads."""

    def __init__(self, *, num_layers: int, width: int, **layer: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TransformerDecoderLayer(width=width, **layer) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)

    def forward(
        self, x: Tensor, position: Tensor, key: Tensor, value: Tensor, blocked: Tensor | None = None
    ) -> list[Tensor]:
        """Return the normed queries (B, Q, C) after each layer; arguments as of the layers."""
        outputs = []
        for layer in self.layers:
            x = layer(x, position, key, value, blocked)
            outputs.append(self.norm(x))
        return outputs


class DetrTransformer(nn.Module):
    """An encoder, in published configs without layers, and a decoder.

    With `pre_norm` the encoder's last norm exists and applies even without layers, as in the public project.
    """

    def __init__(
        self,
        *,
        num_encoder_layers: int,
        num_decoder_layers: int,
        activation_checkpointing: bool,
        **layer: Any,
    ) -> None:
        super().__init__()
        self.encoder = TransformerEncoder(
            num_layers=num_encoder_layers, activation_checkpointing=activation_checkpointing, **layer
        )
        self.decoder = DetrDecoder(num_layers=num_decoder_layers, **layer)


class StandardTransformerDecoder(nn.Module):
    """Queries refined by layers that attend to all cells of one map.

    Args:
        in_channels: of the map.
        num_classes: K; None predicts masks alone, and class logits (B, Q, 0).
        num_layers: decoder layers, and predictions.
        num_encoder_layers: layers of an encoder of the map; 0 in all published configs.
        activation_checkpointing: recompute the encoder's layers in the backward pass.
        enforce_input_proj: project the map even if its width is already `hidden_dim`.

    Raises:
        ValueError: the heads do not divide the width.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int | None,
        hidden_dim: int,
        num_queries: int,
        num_heads: int,
        dim_feedforward: int,
        dropout: float,
        num_encoder_layers: int,
        activation_checkpointing: bool = False,
        num_layers: int,
        mask_dim: int,
        pre_norm: bool,
        enforce_input_proj: bool,
    ) -> None:
        super().__init__()
        self.transformer = DetrTransformer(
            num_encoder_layers=num_encoder_layers,
            activation_checkpointing=activation_checkpointing,
            num_decoder_layers=num_layers,
            width=hidden_dim,
            num_heads=num_heads,
            dim_feedforward=dim_feedforward,
            dropout=dropout,
            pre_norm=pre_norm,
        )
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        projected = enforce_input_proj or in_channels != hidden_dim
        self.input_proj = init_c2_xavier(nn.Conv2d(in_channels, hidden_dim, 1)) if projected else None
        self.class_embed = None if num_classes is None else nn.Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP(hidden_dim, hidden_dim, hidden_dim, mask_dim)

    def forward(self, memory: list[Tensor], mask_features: Tensor) -> Predictions:
        """Predict from memory, one map (B, C, h, w), and mask features (B, mask_dim, H/4, W/4)."""
        (x,) = memory
        if self.input_proj is not None:
            x = self.input_proj(x)
        position = sine_position((x.shape[2], x.shape[3]), x.shape[1], x.device)
        cells = self.transformer.encoder(x.flatten(2).transpose(1, 2), position)
        queries = self.query_embed.weight
        start = torch.zeros_like(queries).expand(cells.shape[0], -1, -1)
        layers = self.transformer.decoder(start, queries, cells + position, cells)
        return Predictions([self._predict(x) for x in layers], mask_features)

    def _predict(self, x: Tensor) -> Prediction:
        classes = x[..., :0] if self.class_embed is None else self.class_embed(x)
        return Prediction(classes, self.mask_embed(x), x)


def standard_arguments(cfg: Any, memory_shape: list[ShapeSpec]) -> dict[str, Any]:
    """Return the arguments of `StandardTransformerDecoder` in a config, for one map.

    Raises:
        ValueError: there are several maps, or a number of classes, queries or layers is below 1.
    """
    decoder = cfg.MODEL.MASK_FORMER
    if len(memory_shape) != 1:
        raise ValueError(
            f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE {decoder.TRANSFORMER_IN_FEATURE!r} gives "
            f"{len(memory_shape)} maps, but MaskFormer's StandardTransformerDecoder "
            "(MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME) reads one, such as res5 or transformer_encoder"
        )
    check_counts(cfg)
    return {
        "in_channels": memory_shape[0].channels,
        "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        "hidden_dim": decoder.HIDDEN_DIM,
        "num_queries": decoder.NUM_OBJECT_QUERIES,
        "num_heads": decoder.NHEADS,
        "dim_feedforward": decoder.DIM_FEEDFORWARD,
        "dropout": decoder.DROPOUT,
        "num_encoder_layers": decoder.ENC_LAYERS,
        "activation_checkpointing": cfg.MODEL.ACTIVATION_CHECKPOINTING,
        "num_layers": decoder.DEC_LAYERS,
        "mask_dim": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
        "pre_norm": decoder.PRE_NORM,
        "enforce_input_proj": decoder.ENFORCE_INPUT_PROJ,
    }


def refuse_decoder_options(cfg: Any, key: str, name: str) -> None:
    """Raise ValueError if a key of MODEL.MASK_FORMER.DECODER is set; `key` is `name`, which reads none."""
    defaults = asdict(PUBLISHED)
    for option, value in asdict(decoder_options(cfg)).items():
        if value != defaults[option]:
            raise ValueError(
                f"MODEL.MASK_FORMER.DECODER.{option.upper()} is {value!r}, an option of "
                f"MultiScaleMaskedTransformerDecoder, but {key} is {name}"
            )


@TRANSFORMER_DECODER.register_as("StandardTransformerDecoder")
def build_standard_transformer_decoder(cfg: Any, memory_shape: list[ShapeSpec]) -> StandardTransformerDecoder:
    """Build MaskFormer's decoder of a config, for the one map that it reads.

    Raises:
        ValueError: as `standard_arguments`, or the config has options of another decoder.
    """
    name = "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME"
    refuse_decoder_options(cfg, name, "StandardTransformerDecoder")
    return StandardTransformerDecoder(**standard_arguments(cfg, memory_shape))
