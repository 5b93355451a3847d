"""Ways for queries to read the memory: masked attention, and what the paper compares it with (Table 4c).

`ATTENTIONS` holds them by the names of `MODEL.MASK_FORMER.DECODER.ATTENTION`. All are called alike. They
differ in what directs a query to cells: its previous mask, a place that it predicts, or nothing.

Shapes: `B` images, `Q` queries, `C` channels, `D` channels of masks, `N` cells of one level, or of several
concatenated ones, `h, w` the sides of a level.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.modeling.layers.attention import MultiHeadAttention, map_sequence
from mask2former.modeling.predictions import multiply_masks


class MemoryCells(NamedTuple):
    """Cells that a layer attends to: keys and values (B, N, C), and the shapes (h, w) of their levels.

    Mask features (B, D, N) are resized to the levels; None if the attention reads no masks. The last P of the
    queries are pilots, if any, which must not attend to `blocked_for_pilots` (B, P, N) bool.
    """

    keys: Tensor
    values: Tensor
    mask_features: Tensor | None
    shapes: tuple[tuple[int, int], ...]
    blocked_for_pilots: Tensor | None = None


class ResidualLayer(nn.Module):
    """A residual update, with the norm after the sum, or before the update (`pre_norm`)."""

    def __init__(self, width: int, pre_norm: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def add(self, x: Tensor, update: Callable[[Tensor], Tensor]) -> Tensor:
        """Return x plus its update, (B, Q, C)."""
        if self.pre_norm:
            return x + self.dropout(update(self.norm(x)))
        return self.norm(x + self.dropout(update(x)))


class CrossAttention(ResidualLayer):
    """Plain attention of queries to all cells."""

    reads_masks = False

    def __init__(self, width: int, num_heads: int, pre_norm: bool, dropout: float = 0.0) -> None:
        super().__init__(width, pre_norm, dropout)
        self.multihead_attn = MultiHeadAttention(width, num_heads, dropout)

    def forward(self, x: Tensor, position: Tensor, cells: MemoryCells, mask_embed: Tensor | None) -> Tensor:
        """Update queries x (B, Q, C) with position (Q, C).

        mask_embed (B, Q, D) is that of the previous prediction; None before the first.
        """
        return self.add(x, lambda query: self.multihead_attn(query + position, cells.keys, cells.values))


class MaskedAttention(CrossAttention):
    """Attention of queries to the cells inside their previous mask (paper §3.2.1)."""

    reads_masks = True

    def forward(self, x: Tensor, position: Tensor, cells: MemoryCells, mask_embed: Tensor | None) -> Tensor:
        """Update queries as `CrossAttention`; without a previous mask they attend to all cells."""
        of_pilots = cells.blocked_for_pilots
        if of_pilots is None:
            blocked = blocked_cells(mask_embed, cells.mask_features)
        else:
            assert mask_embed is not None
            matched = blocked_cells(mask_embed[:, : x.shape[1] - of_pilots.shape[1]], cells.mask_features)
            assert matched is not None
            blocked = torch.cat([matched, of_pilots], 1)
        return self.add(
            x, lambda query: self.multihead_attn(query + position, cells.keys, cells.values, blocked)
        )


class SpatiallyModulatedAttention(CrossAttention):
    """Attention that each head weights by a Gaussian around a place that the query predicts (SMCA).

    The paper does not say how it adapted SMCA. Here centers and scales are relative to the map, so they hold
    at every level. Each layer predicts them from its queries: a center for the query, and a shift and scales
    for each head. At first the scales are the map's sides, and the shifts zero.
    """

    def __init__(self, width: int, num_heads: int, pre_norm: bool, dropout: float = 0.0) -> None:
        super().__init__(width, num_heads, pre_norm, dropout)
        self.center = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))
        self.shift = nn.Linear(width, 2 * num_heads)
        self.scale = nn.Linear(width, 2 * num_heads)
        for linear, bias in ((self.shift, 0.0), (self.scale, 1.0)):
            nn.init.zeros_(linear.weight)
            nn.init.constant_(linear.bias, bias)

    def forward(self, x: Tensor, position: Tensor, cells: MemoryCells, mask_embed: Tensor | None) -> Tensor:
        """Update queries as `CrossAttention`."""
        centers = map_sequence(cells.shapes, x.device).centers

        def attend(query: Tensor) -> Tensor:
            query = query + position
            bias = self.log_gaussians(query, centers)
            return self.multihead_attn(query, cells.keys, cells.values, bias=bias)

        return self.add(x, attend)

    def log_gaussians(self, query: Tensor, centers: Tensor) -> Tensor:
        """Return each head's log weight (B, heads, Q, N) of the cells with centers (N, 2), for (B, Q, C)."""
        shift, scale = (predict(query).unflatten(-1, (-1, 2)) for predict in (self.shift, self.scale))
        places = self.center(query).sigmoid()[:, :, None] + shift  # (B, Q, heads, 2)
        widths = scale.square().clamp(min=1e-4)
        squares = [
            (centers[:, axis] - places[..., axis, None]).square() / widths[..., axis, None] for axis in (0, 1)
        ]
        return -(squares[0] + squares[1]).transpose(1, 2)


class MaskPooling(ResidualLayer):
    """Mean of the cells inside the query's previous mask, projected: no keys, queries or weights (K-Net).

    The published cost of this row fits only one projection, of the output. An empty mask takes the mean of
    all cells, as masked attention does; the paper leaves it open.
    """

    reads_masks = True

    def __init__(self, width: int, num_heads: int, pre_norm: bool, dropout: float = 0.0) -> None:
        super().__init__(width, pre_norm, dropout)
        if pre_norm:
            raise ValueError(
                "MODEL.MASK_FORMER.DECODER.ATTENTION pooling does not read queries, so that "
                "MODEL.MASK_FORMER.PRE_NORM True would normalize nothing; change one of the two"
            )
        self.multihead_attn = nn.ModuleDict({"out_proj": nn.Linear(width, width)})

    def forward(self, x: Tensor, position: Tensor, cells: MemoryCells, mask_embed: Tensor | None) -> Tensor:
        """Update queries as `MaskedAttention`."""
        blocked = blocked_cells(mask_embed, cells.mask_features)
        if blocked is None:
            pooled = cells.values.mean(1, keepdim=True).expand_as(x)
        else:
            weights = (~blocked).to(cells.values.dtype)
            pooled = weights @ cells.values / weights.sum(-1, keepdim=True)
        return self.add(x, lambda _: self.multihead_attn["out_proj"](pooled))


ATTENTIONS: dict[str, type[CrossAttention] | type[MaskPooling]] = {
    "masked": MaskedAttention,
    "cross": CrossAttention,
    "smca": SpatiallyModulatedAttention,
    "pooling": MaskPooling,
}


@torch.no_grad()
def resize_mask_features(mask_features: Tensor, shape: tuple[int, int]) -> Tensor:
    """Resize mask features (B, D, H/4, W/4) to a level: (B, D, h, w), in float32 and without gradient."""
    return F.interpolate(mask_features.float(), size=shape, mode="bilinear", align_corners=False)


@torch.no_grad()
def blocked_cells(mask_embed: Tensor | None, mask_features: Tensor | None) -> Tensor | None:
    """Return the cells that each query must not attend to, (B, Q, N) bool; none for an empty mask.

    mask_embed is (B, Q, D), and mask_features (B, D, N) are those of the cells. Without mask_embed there is
    no mask, and the result is None.
    """
    if mask_embed is None or mask_features is None:
        return None
    blocked = multiply_masks(mask_embed, mask_features) < 0
    return blocked & ~blocked.all(-1, keepdim=True)
