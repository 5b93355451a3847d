"""Layers of DETR's transformer, as MaskFormer uses them, with parameters named as in published checkpoints.

Unlike Mask2Former's layers they have dropout: on attention weights, inside of the feed-forward network, and
on every residual update.

Shapes: `B` images, `S` tokens of a sequence, `C` channels. Positions are those of all images, or (B, ...) of
each. `blocked` is True for tokens that no token attends to, such as those of padding.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from mask2former.modeling.layers.activation_checkpointing import checkpoint_activations
from mask2former.modeling.layers.attention import MultiHeadAttention
from mask2former.modeling.layers.feed_forward import feed_forward


class TransformerLayer(nn.Module):
    """What the layers of encoder and decoder share: self-attention, feed-forward network, residual updates.

    Args:
        pre_norm: place norms before attention and feed-forward network, not after the sums.

    Raises:
        ValueError: the heads do not divide the width.
    """

    def __init__(
        self, *, width: int, num_heads: int, dim_feedforward: int, dropout: float, pre_norm: bool
    ) -> None:
        super().__init__()
        self.self_attn = MultiHeadAttention(width, num_heads, dropout)
        self.linear1 = nn.Linear(width, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def add(self, x: Tensor, norm: nn.Module, update: Callable[[Tensor], Tensor]) -> Tensor:
        """Return x (B, S, C) plus its update, with dropout and norm."""
        if self.pre_norm:
            return x + self.dropout(update(norm(x)))
        return norm(x + self.dropout(update(x)))

    def attend_to_itself(self, x: Tensor, position: Tensor, blocked: Tensor | None = None) -> Tensor:
        """Return the self-attention of x (B, S, C); position (S, C) is added to queries and keys alone."""
        return self.self_attn(x + position, x + position, x, blocked)

    def feed_forward(self, x: Tensor) -> Tensor:
        """Apply the feed-forward network to x (B, S, C)."""
        return feed_forward(x, self.linear1, self.linear2, self.dropout)


class TransformerEncoderLayer(TransformerLayer):
    """Self-attention, then a feed-forward network."""

    def forward(self, x: Tensor, position: Tensor, blocked: Tensor | None = None) -> Tensor:
        """Update tokens x (B, S, C) with position (S, C) and `blocked` (B, 1, S)."""
        x = self.add(x, self.norm1, lambda tokens: self.attend_to_itself(tokens, position, blocked))
        return self.add(x, self.norm2, self.feed_forward)


class TransformerDecoderLayer(TransformerLayer):
    """Self-attention of queries, attention to the encoded cells, then a feed-forward network.

    Shapes: `Q` queries, `N` cells.
    """

    def __init__(self, *, width: int, num_heads: int, dropout: float, **options: Any) -> None:
        super().__init__(width=width, num_heads=num_heads, dropout=dropout, **options)
        self.multihead_attn = MultiHeadAttention(width, num_heads, dropout)
        self.norm3 = nn.LayerNorm(width)

    def forward(
        self, x: Tensor, position: Tensor, key: Tensor, value: Tensor, blocked: Tensor | None = None
    ) -> Tensor:
        """Update queries x (B, Q, C) with position (Q, C), key and value (B, N, C), `blocked` (B, 1, N)."""
        x = self.add(x, self.norm1, lambda query: self.attend_to_itself(query, position))
        x = self.add(x, self.norm2, lambda query: self.multihead_attn(query + position, key, value, blocked))
        return self.add(x, self.norm3, self.feed_forward)


class TransformerEncoder(nn.Module):
    """A stack of encoder layers, with a norm at the end if they normalize before their updates."""

    def __init__(
        self,
        *,
        num_layers: int,
        width: int,
        num_heads: int,
        dim_feedforward: int,
        dropout: float,
        pre_norm: bool,
        activation_checkpointing: bool,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerEncoderLayer(
                width=width,
                num_heads=num_heads,
                dim_feedforward=dim_feedforward,
                dropout=dropout,
                pre_norm=pre_norm,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width) if pre_norm else None
        self.activation_checkpointing = activation_checkpointing

    def forward(self, x: Tensor, position: Tensor, blocked: Tensor | None = None) -> Tensor:
        """Apply all layers to tokens x (B, S, C) with position (S, C) and `blocked` (B, 1, S)."""
        for layer in self.layers:
            if self.activation_checkpointing:
                x = checkpoint_activations(layer, x, position, blocked)
            else:
                x = layer(x, position, blocked)
        return x if self.norm is None else self.norm(x)
