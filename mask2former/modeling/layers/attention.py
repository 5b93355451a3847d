"""Attention: multi-scale deformable for maps, masked multi-head for the transformer decoder.

Parameters are named as published checkpoints name them. Sequences are batch-first throughout.

Shapes: `B` images, `Q` queries, `N` keys, `S` cells of all maps together, `L` levels, `P` points,
`C` channels, `V` channels of projected values.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.ops.deformable import ms_deform_attn_from_offsets


class MapSequence(NamedTuple):
    """Geometry of L concatenated maps: shapes (H, W), and cell centers (S, 2), x then y, in [0, 1]."""

    shapes: tuple[tuple[int, int], ...]
    centers: Tensor


def map_sequence(shapes: tuple[tuple[int, int], ...], device: torch.device) -> MapSequence:
    """Compute the geometry on the device itself, because a CUDA graph allows no copy from the host."""
    return MapSequence(shapes, torch.cat([_cell_centers(shape, device) for shape in shapes]))


def _cell_centers(shape: tuple[int, int], device: torch.device) -> Tensor:
    """Return the centers (H * W, 2) of a map's cells, row by row."""
    y, x = ((torch.arange(size, dtype=torch.float32, device=device) + 0.5) / size for size in shape)
    height, width = shape  # not len(y), which would be a constant in an exported graph
    return torch.stack((x.expand(height, -1), y[:, None].expand(-1, width)), dim=-1).flatten(0, 1)


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention: each cell predicts P points per head and level to attend to.

    Args:
        value_ratio: V / C, by which values are narrower than queries.
    """

    def __init__(
        self, *, width: int, num_heads: int, num_levels: int, num_points: int, value_ratio: float = 1.0
    ) -> None:
        super().__init__()
        value_width = int(width * value_ratio)
        check_heads(value_width, num_heads)
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        num_samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(width, num_samples * 2)
        self.attention_weights = nn.Linear(width, num_samples)
        self.value_proj = nn.Linear(width, value_width)
        self.output_proj = nn.Linear(value_width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize to equal weights and points on one ray per head, 1 to P steps from the cell."""
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)
        for projection in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(projection.weight)
        nn.init.zeros_(self.attention_weights.bias)
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        circle = torch.stack((angles.cos(), angles.sin()), dim=-1)  # (heads, 2)
        square = circle / circle.abs().amax(-1, keepdim=True)
        steps = torch.arange(1.0, self.num_points + 1)[:, None]  # (P, 1)
        offsets = (square[:, None, None] * steps).expand(-1, self.num_levels, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())

    def forward(self, query: Tensor, value: Tensor, maps: MapSequence) -> Tensor:
        """Attend from every cell to all cells: query and value (B, S, C) -> (B, S, C)."""
        return self.attend(query, self.project(value), maps.shapes, maps.centers)

    def project(self, value: Tensor) -> Tensor:
        """Project value (B, S, C) to what `attend` samples: (B, S, heads, V / heads)."""
        return self.value_proj(value).unflatten(-1, (self.num_heads, -1))

    def attend(
        self, query: Tensor, values: Tensor, shapes: tuple[tuple[int, int], ...], centers: Tensor
    ) -> Tensor:
        """Attend from any Q cells to the projected values of maps of these shapes -> (B, Q, C).

        The query (B, Q, C) has centers (Q, 2); its cells may be those of other maps.
        """
        samples = (self.num_heads, self.num_levels, self.num_points)
        # In half precision, locations on a large map would be off by a fraction of a cell.
        with torch.autocast(query.device.type, enabled=False):
            offsets = self.sampling_offsets(query.float())
        logits = self.attention_weights(query)
        if torch.is_grad_enabled():  # a half-precision gradient of the sampling is off by tenths of its norm
            values, logits = values.float(), logits.float()
        attended = ms_deform_attn_from_offsets(
            values,
            shapes,
            centers[None, :, None],
            offsets.unflatten(-1, (*samples, 2)),
            logits.unflatten(-1, samples),
        )
        return self.output_proj(attended)


class MultiHeadAttention(nn.Module):
    """Multi-head attention with nn.MultiheadAttention's parameters; keys may be blocked for each query.

    In training, `dropout` is the probability with which an attention weight is set to zero.
    """

    def __init__(self, width: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        check_heads(width, num_heads)
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        blocked: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Attend: query (B, Q, C), key and value (B, N, C) -> (B, Q, C).

        `blocked` (B, Q, N), or (B, 1, N) for all queries, bool is True where a query may not attend; each
        query must keep at least one key.
        Without it, `bias` (B, heads, Q, N) is added to the logits.
        """
        projections = zip(
            (query, key, value), self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True
        )
        q, k, v = (
            F.linear(x, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, weight, bias in projections
        )
        mask = None if bias is None else bias.to(q.dtype)
        if blocked is not None:  # fused kernels accept only a mask (B, 1, Q, N) to add to the logits
            mask = torch.zeros(blocked.shape, dtype=q.dtype, device=q.device)
            mask = mask.masked_fill(blocked, -math.inf).unsqueeze(1)
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


def check_heads(width: int, num_heads: int) -> None:
    """Raise ValueError if the heads do not divide the width."""
    if num_heads < 1 or width % num_heads:
        raise ValueError(
            f"a width of {width} cannot be shared by {num_heads} attention heads (MODEL.MASK_FORMER.NHEADS)"
        )
