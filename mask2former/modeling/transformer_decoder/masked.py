"""Transformer decoder with masked attention: each query attends only inside its previous mask prediction.

Section 3.2 of the paper. A query does not attend to cells where its mask logit, resized to the attended map,
is negative. Resizing and the product with the embeddings are both linear, so the mask features are resized
once per level, and dense mask logits are never computed.

Shapes: `B` images, `Q` queries, `K` classes, `C` channels, `L` levels, `N` cells of one level, `h, w` its
sides, `H, W` the sides of the padded image.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.modeling.layers.attention import MultiHeadAttention
from mask2former.modeling.layers.conv import init_c2_xavier
from mask2former.modeling.layers.mlp import MLP
from mask2former.modeling.layers.position import sine_position
from mask2former.modeling.predictions import Prediction, Predictions, multiply_masks
from mask2former.structures import ShapeSpec
from mask2former.utils.registry import TRANSFORMER_DECODER


class ResidualLayer(nn.Module):
    """A residual update, with the norm after the sum, or before the update (`pre_norm`)."""

    def __init__(self, width: int, pre_norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.pre_norm = pre_norm

    def add(self, x: Tensor, update: Callable[[Tensor], Tensor]) -> Tensor:
        """Return x plus its update, (B, Q, C)."""
        return x + update(self.norm(x)) if self.pre_norm else self.norm(x + update(x))


class CrossAttentionLayer(ResidualLayer):
    """Attention of queries to the unblocked cells of one level."""

    def __init__(self, width: int, num_heads: int, pre_norm: bool) -> None:
        super().__init__(width, pre_norm)
        self.multihead_attn = MultiHeadAttention(width, num_heads)

    def forward(self, x: Tensor, position: Tensor, key: Tensor, value: Tensor, blocked: Tensor) -> Tensor:
        """Update x (B, Q, C) by position (Q, C), key and value (B, N, C), and blocked (B, Q, N) bool."""
        return self.add(x, lambda query: self.multihead_attn(query + position, key, value, blocked))


class SelfAttentionLayer(ResidualLayer):
    """Attention of queries to each other."""

    def __init__(self, width: int, num_heads: int, pre_norm: bool) -> None:
        super().__init__(width, pre_norm)
        self.self_attn = MultiHeadAttention(width, num_heads)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        return self.add(x, lambda query: self.self_attn(query + position, query + position, query))


class FeedForwardLayer(ResidualLayer):
    """Two linear layers with ReLU between them."""

    def __init__(self, width: int, dim_feedforward: int, pre_norm: bool) -> None:
        super().__init__(width, pre_norm)
        self.linear1 = nn.Linear(width, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, width)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.add(x, lambda query: self.linear2(F.relu(self.linear1(query))))


class MultiScaleMaskedTransformerDecoder(nn.Module):
    """Learned queries, refined by layers that attend to the memory's levels in turn, coarsest first.

    Args:
        num_layers: decoder layers; there is one more prediction.
        pre_norm: place norms before attention and feed-forward, not after the sums.
        enforce_input_proj: project the memory even if its width is already `hidden_dim`.

    Raises:
        ValueError: the heads do not divide the width.
    """

    def __init__(
        self,
        *,
        memory_shape: list[ShapeSpec],
        num_classes: int,
        hidden_dim: int,
        num_queries: int,
        num_heads: int,
        dim_feedforward: int,
        num_layers: int,
        mask_dim: int,
        pre_norm: bool,
        enforce_input_proj: bool,
    ) -> None:
        super().__init__()
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(hidden_dim, num_heads, pre_norm) for _ in range(num_layers)
        )
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(hidden_dim, num_heads, pre_norm) for _ in range(num_layers)
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FeedForwardLayer(hidden_dim, dim_feedforward, pre_norm) for _ in range(num_layers)
        )
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.query_feat = nn.Embedding(num_queries, hidden_dim)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.level_embed = nn.Embedding(len(memory_shape), hidden_dim)
        self.input_proj = nn.ModuleList(
            _memory_projection(shape.channels, hidden_dim, enforce_input_proj) for shape in memory_shape
        )
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP(hidden_dim, hidden_dim, hidden_dim, mask_dim)

    def forward(self, memory: list[Tensor], mask_features: Tensor) -> Predictions:
        """Predict from memory, L maps (B, C, h, w), and mask features (B, mask_dim, H/4, W/4)."""
        levels = [self._keys_and_values(level, x) for level, x in enumerate(memory)]
        level_features = [resize_mask_features(mask_features, (x.shape[2], x.shape[3])) for x in memory]
        x = self.query_feat.weight.expand(len(mask_features), -1, -1)
        position = self.query_embed.weight
        predictions = [self._predict(x)]
        layers = zip(
            self.transformer_cross_attention_layers,
            self.transformer_self_attention_layers,
            self.transformer_ffn_layers,
            strict=True,
        )
        for i, (cross_attention, self_attention, feed_forward) in enumerate(layers):
            level = i % len(memory)
            blocked = blocked_cells(predictions[-1].mask_embed, level_features[level])
            x = cross_attention(x, position, *levels[level], blocked)
            x = feed_forward(self_attention(x, position))
            predictions.append(self._predict(x))
        return Predictions(predictions, mask_features)

    def _keys_and_values(self, level: int, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, N, C) of a level's map (B, C, h, w); only keys contain positions."""
        shape = (memory.shape[2], memory.shape[3])
        cells = self.input_proj[level](memory).flatten(2).transpose(1, 2)
        values = cells + self.level_embed.weight[level]
        return values + sine_position(shape, values.shape[-1], values.device), values

    def _predict(self, x: Tensor) -> Prediction:
        """Predict from queries x (B, Q, C); the next layer continues with x before the norm."""
        x = self.decoder_norm(x)
        return Prediction(self.class_embed(x), self.mask_embed(x))


@torch.no_grad()
def resize_mask_features(mask_features: Tensor, shape: tuple[int, int]) -> Tensor:
    """Resize mask features (B, C, H/4, W/4) to a level's size (h, w), in float32 and without gradient."""
    return F.interpolate(mask_features.float(), size=shape, mode="bilinear", align_corners=False)


@torch.no_grad()
def blocked_cells(mask_embed: Tensor, mask_features: Tensor) -> Tensor:
    """Return the cells that each query must not attend to, (B, Q, N) bool; with an empty mask there are none.

    mask_embed is (B, Q, C), and mask_features (B, C, h, w) are resized to the level.
    """
    blocked = multiply_masks(mask_embed, mask_features).flatten(2) < 0
    return blocked & ~blocked.all(-1, keepdim=True)


def _memory_projection(channels: int, width: int, enforce: bool) -> nn.Module:
    if channels == width and not enforce:
        return nn.Identity()
    projection = nn.Conv2d(channels, width, 1)
    init_c2_xavier(projection)
    return projection


@TRANSFORMER_DECODER.register_as("MultiScaleMaskedTransformerDecoder")
def build_masked_transformer_decoder(
    cfg: Any, input_shape: list[ShapeSpec]
) -> MultiScaleMaskedTransformerDecoder:
    """Build the decoder of a config for a pixel decoder's memory `input_shape`.

    Raises:
        ValueError: NUM_CLASSES, NUM_OBJECT_QUERIES or DEC_LAYERS (predictions, one more than layers) is
            below 1.
    """
    head, decoder = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    counts = {
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": head.NUM_CLASSES,
        "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": decoder.NUM_OBJECT_QUERIES,
        "MODEL.MASK_FORMER.DEC_LAYERS": decoder.DEC_LAYERS,
    }
    for key, count in counts.items():
        if count < 1:
            raise ValueError(f"{key} is {count}; it must be at least 1")
    return MultiScaleMaskedTransformerDecoder(
        memory_shape=input_shape,
        num_classes=head.NUM_CLASSES,
        hidden_dim=decoder.HIDDEN_DIM,
        num_queries=decoder.NUM_OBJECT_QUERIES,
        num_heads=decoder.NHEADS,
        dim_feedforward=decoder.DIM_FEEDFORWARD,
        num_layers=decoder.DEC_LAYERS - 1,
        mask_dim=head.MASK_DIM,
        pre_norm=decoder.PRE_NORM,
        enforce_input_proj=decoder.ENFORCE_INPUT_PROJ,
    )
