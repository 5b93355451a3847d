"""Transformer decoder with masked attention: each query attends only inside its previous mask prediction.

Section 3.2 of the paper. A query does not attend to cells where its mask logit, resized to the attended map,
is negative. Resizing and the product with the embeddings are both linear, so the mask features are resized
once per level, and dense mask logits are never computed.

The options are those of `options.py`. How queries read the memory is `memory_attention.py`.

Shapes: `B` images, `Q` queries, `K` classes, `C` channels, `L` levels, `N` cells of one level, `h, w` its
sides, `H, W` the sides of the padded image.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.modeling.layers.attention import MultiHeadAttention
from mask2former.modeling.layers.conv import init_c2_xavier
from mask2former.modeling.layers.mlp import MLP
from mask2former.modeling.layers.position import sine_position
from mask2former.modeling.predictions import Prediction, Predictions
from mask2former.modeling.transformer_decoder.memory_attention import (
    ATTENTIONS,
    MemoryCells,
    ResidualLayer,
    resize_mask_features,
)
from mask2former.modeling.transformer_decoder.options import (
    PUBLISHED,
    DecoderOptions,
    check_counts,
    decoder_options,
)
from mask2former.modeling.transformer_decoder.pilots import (
    TrainingTargets,
    blocked_for_pilots,
    blocked_queries,
    check_pilots,
    draw_pilots,
)
from mask2former.modeling.transformer_decoder.tasks import (
    blocked_between_tasks,
    for_each_task,
    task_embedding,
)
from mask2former.structures import ShapeSpec
from mask2former.utils.registry import TRANSFORMER_DECODER


class SelfAttentionLayer(ResidualLayer):
    """Attention of queries to each other."""

    def __init__(self, width: int, num_heads: int, pre_norm: bool, dropout: float) -> None:
        super().__init__(width, pre_norm, dropout)
        self.self_attn = MultiHeadAttention(width, num_heads, dropout)

    def forward(self, x: Tensor, position: Tensor, blocked: Tensor | None = None) -> Tensor:
        """Update queries x (B, Q, C); `blocked` (B, Q, Q) bool are those that each must not attend to."""
        return self.add(x, lambda query: self.self_attn(query + position, query + position, query, blocked))


class FeedForwardLayer(ResidualLayer):
    """Two linear layers with ReLU between them."""

    def __init__(self, width: int, dim_feedforward: int, pre_norm: bool, dropout: float) -> None:
        super().__init__(width, pre_norm, dropout)
        self.linear1 = nn.Linear(width, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, width)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.add(x, lambda query: self.linear2(self.dropout(F.relu(self.linear1(query)))))


class MultiScaleMaskedTransformerDecoder(nn.Module):
    """Learned queries, refined by layers that attend to the memory's levels in turn, coarsest first.

    Args:
        num_layers: decoder layers; there is one more prediction, before the first, unless `options` drop it.
        pre_norm: place norms before attention and feed-forward, not after the sums.
        enforce_input_proj: project the memory even if its width is already `hidden_dim`.
        tasks: those that the queries are told apart for (`tasks.py`); none: they serve any.

    Raises:
        ValueError: the heads do not divide the width, the memory has no level of the stride chosen, or there
            are no more layers than `options.fine_layers`.
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
        options: DecoderOptions = PUBLISHED,
        tasks: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.options = options
        self.trained_tasks = tuple(tasks)
        self.levels = options.levels([shape.stride for shape in memory_shape])
        self.turns = options.turns(len(self.levels), num_layers)
        memory_shape = [memory_shape[level] for level in self.levels]
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(hidden_dim, num_heads, pre_norm, options.dropout) for _ in range(num_layers)
        )
        attention = ATTENTIONS[options.attention]
        self.transformer_cross_attention_layers = nn.ModuleList(
            attention(hidden_dim, num_heads, pre_norm, options.dropout) for _ in range(num_layers)
        )
        self.reads_masks = attention.reads_masks
        self.transformer_ffn_layers = nn.ModuleList(
            FeedForwardLayer(hidden_dim, dim_feedforward, pre_norm, options.dropout)
            for _ in range(num_layers)
        )
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.query_feat = nn.Embedding(num_queries, hidden_dim) if options.learned_queries else None
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.level_embed = nn.Embedding(len(memory_shape), hidden_dim)
        self.input_proj = nn.ModuleList(
            _memory_projection(shape.channels, hidden_dim, enforce_input_proj) for shape in memory_shape
        )
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP(hidden_dim, hidden_dim, hidden_dim, mask_dim)
        self.pilot_embed = nn.Embedding(num_classes, hidden_dim) if options.pilot_groups else None
        self.fine_proj = _memory_projection(mask_dim, hidden_dim, True) if options.fine_layers else None
        self.task_feat = task_embedding(hidden_dim) if tasks else None
        self.task_embed = task_embedding(hidden_dim) if tasks else None

    @property
    def reads_targets(self) -> bool:
        """Return True if the decoder is to be told the targets in training."""
        return self.pilot_embed is not None

    def forward(
        self,
        memory: list[Tensor],
        mask_features: Tensor,
        targets: TrainingTargets | None = None,
        tasks: Tensor | None = None,
    ) -> Predictions:
        """Predict from memory, L maps (B, C, h, w), and mask features (B, mask_dim, H/4, W/4).

        With `targets`, pilots are predicted too. A decoder with `trained_tasks` needs `tasks` (B, T), which
        are places in TASKS; all T are predicted, with T Q queries, one task after the other.
        """
        maps = [memory[level] for level in self.levels]
        if self.fine_proj is not None:
            maps.append(mask_features)
        cells = [self._cells(i, level, mask_features) for i, level in enumerate(maps)]
        if self.options.concatenate_levels:
            cells = [concatenate(cells)]
        x, position, blocked = self._first_queries(mask_features.shape[0], tasks)
        if targets is not None:
            x, position, blocked, cells = self._with_pilots(targets, x, position, cells)
        latest = None if self.query_feat is None else self._predict(x)
        predictions = [latest] if latest is not None and self.options.supervise_queries else []
        layers = zip(
            self.transformer_cross_attention_layers,
            self.transformer_self_attention_layers,
            self.transformer_ffn_layers,
            strict=True,
        )
        for turn, (cross_attention, self_attention, feed_forward) in zip(self.turns, layers, strict=True):
            if self.options.self_attention_first:
                x = self_attention(x, position, blocked)
            x = cross_attention(x, position, cells[turn], None if latest is None else latest.mask_embed)
            if not self.options.self_attention_first:
                x = self_attention(x, position, blocked)
            x = feed_forward(x)
            latest = self._predict(x)
            predictions.append(latest)
        if targets is None:
            return Predictions(predictions, mask_features)
        return with_pilots_apart(predictions, len(self.query_embed.weight), mask_features)

    def _with_pilots(
        self, targets: TrainingTargets, x: Tensor, position: Tensor, cells: list[MemoryCells]
    ) -> tuple[Tensor, Tensor, Tensor, list[MemoryCells]]:
        """Return queries, positions and cells with pilots, and what is blocked in self-attention.

        Pilots have no learned position.
        """
        assert self.pilot_embed is not None
        options, num_queries = self.options, x.shape[1]
        pilots = draw_pilots(
            targets, options.pilot_groups, options.pilot_class_noise, self.pilot_embed.num_embeddings
        )
        blocked = [blocked_for_pilots(pilots, level.shapes, options.pilot_mask_noise) for level in cells]
        return (
            torch.cat([x, self.pilot_embed(pilots.classes)], 1),
            F.pad(position, (0, 0, 0, pilots.classes.shape[1])),
            blocked_queries(pilots, num_queries),
            [level._replace(blocked_for_pilots=some) for level, some in zip(cells, blocked, strict=True)],
        )

    def _first_queries(self, num_images: int, tasks: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return queries before the first layer, their positions, and what is blocked in self-attention.

        Without tasks these are (B, Q, C) and (Q, C); with them, both are (B, T Q, C).
        """
        position = self.query_embed.weight
        x = torch.zeros_like(position) if self.query_feat is None else self.query_feat.weight
        if self.task_feat is None or self.task_embed is None:
            return x.expand(num_images, -1, -1), position, None
        assert tasks is not None
        blocked = blocked_between_tasks(tasks.shape[1], len(x), x.device)
        return (
            for_each_task(x, self.task_feat, tasks),
            for_each_task(position, self.task_embed, tasks),
            blocked,
        )

    def _cells(self, index: int, memory: Tensor, mask_features: Tensor) -> MemoryCells:
        """Return the cells of a level's map (B, C, h, w); only keys contain positions.

        The level after those of the memory is that of `fine_layers`.
        """
        shape = (memory.shape[2], memory.shape[3])
        values = self._values(index, memory)
        keys = values + sine_position(shape, values.shape[-1], values.device)
        masks = resize_mask_features(mask_features, shape).flatten(2) if self.reads_masks else None
        return MemoryCells(keys, values, masks, (shape,))

    def _values(self, index: int, memory: Tensor) -> Tensor:
        """Return a level's map (B, C, h, w), projected and marked as this level: (B, N, C)."""
        if index == len(self.input_proj):
            assert self.fine_proj is not None
            return self.fine_proj(memory).flatten(2).transpose(1, 2)  # the bias marks the level
        cells = self.input_proj[index](memory).flatten(2).transpose(1, 2)
        return cells + self.level_embed.weight[index]

    def _predict(self, x: Tensor) -> Prediction:
        """Predict from queries x (B, Q, C); the next layer continues with x before the norm."""
        x = self.decoder_norm(x)
        return Prediction(self.class_embed(x), self.mask_embed(x), x)


def with_pilots_apart(layers: list[Prediction], num_queries: int, mask_features: Tensor) -> Predictions:
    """Return the predictions of the first `num_queries` queries, with those of the others as pilots."""

    def some(which: slice) -> list[Prediction]:
        return [Prediction(*(part[:, which] for part in layer if part is not None)) for layer in layers]

    return Predictions(some(slice(num_queries)), mask_features, pilots=some(slice(num_queries, None)))


def concatenate(cells: list[MemoryCells]) -> MemoryCells:
    """Return the cells of all levels as one."""
    masks = [level.mask_features for level in cells if level.mask_features is not None]
    return MemoryCells(
        keys=torch.cat([level.keys for level in cells], 1),
        values=torch.cat([level.values for level in cells], 1),
        mask_features=torch.cat(masks, 2) if masks else None,
        shapes=tuple(shape for level in cells for shape in level.shapes),
    )


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
    """Build the decoder of a config for a pixel decoder's memory `input_shape`; raise ValueError as below."""
    return MultiScaleMaskedTransformerDecoder(**masked_decoder_arguments(cfg, input_shape))


def masked_decoder_arguments(cfg: Any, input_shape: list[ShapeSpec]) -> dict[str, Any]:
    """Read the arguments of `MultiScaleMaskedTransformerDecoder` from a config.

    Raises:
        ValueError: NUM_CLASSES, NUM_OBJECT_QUERIES or DEC_LAYERS (predictions, one more than layers) is
            below 1, TRANSFORMER_IN_FEATURE is another map, or `DecoderOptions` or pilots are wrong.
    """
    head, decoder = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    if decoder.TRANSFORMER_IN_FEATURE != "multi_scale_pixel_decoder":
        raise ValueError(
            f"MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME {decoder.TRANSFORMER_DECODER_NAME} reads the maps "
            "of TRANSFORMER_IN_FEATURE multi_scale_pixel_decoder, not "
            f"{decoder.TRANSFORMER_IN_FEATURE}; MaskFormer's files need StandardTransformerDecoder"
        )
    check_counts(cfg)
    check_pilots(cfg)
    return {
        "memory_shape": input_shape,
        "num_classes": head.NUM_CLASSES,
        "hidden_dim": decoder.HIDDEN_DIM,
        "num_queries": decoder.NUM_OBJECT_QUERIES,
        "num_heads": decoder.NHEADS,
        "dim_feedforward": decoder.DIM_FEEDFORWARD,
        "num_layers": decoder.DEC_LAYERS - 1,
        "mask_dim": head.MASK_DIM,
        "pre_norm": decoder.PRE_NORM,
        "enforce_input_proj": decoder.ENFORCE_INPUT_PROJ,
        "options": decoder_options(cfg),
        "tasks": cfg.SOLVER.TASKS,
    }
