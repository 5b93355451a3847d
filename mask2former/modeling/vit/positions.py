"""Positions of patches: a learned embedding, a rotation of queries and keys, or a bias for each offset.

Shapes: `H, W` the grid of an image's patches, `P = H * W`, `G` the side of the grid that parameters are for,
`C` channels, `h` heads, `D` channels of a head.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# Rows at a bias table's end: class token to patch, patch to class token, class token to itself
CLASS_OFFSETS = 3


class TokenLayout(NamedTuple):
    """Layout of a sequence of tokens: its last P tokens are the patches of a grid, row by row.

    Any tokens may stand before them. Without relative positions these have no position; with them, the token
    next to the patches is the class token.

    height, width: the grid of patches.
    rotation: cosines and sines (P, D) of rotary positions, or None.
    offsets: the row of the bias table for each pair of class token and patches, (1 + P, 1 + P), or None.
    """

    height: int
    width: int
    rotation: tuple[Tensor, Tensor] | None = None
    offsets: Tensor | None = None

    @property
    def patches(self) -> int:
        """Return P, the number of patches."""
        return self.height * self.width


def resize_grid(embedding: Tensor, height: int, width: int) -> Tensor:
    """Resize an embedding (1, G * G, C) of a square grid to (1, height * width, C).

    It is bicubic with antialiasing, as in DINOv2 with registers.
    """
    side = math.isqrt(embedding.shape[1])
    if not torch.compiler.is_compiling() and (height, width) == (side, side):  # an exported file takes any
        return embedding
    columns = embedding.float().transpose(1, 2)
    columns = _resize_square(columns, (height, width), mode="bicubic", antialias=True)
    return columns.transpose(1, 2).to(embedding.dtype)


def _resize_square(columns: Tensor, size: tuple[int, int], **how: Any) -> Tensor:
    """Resize columns (1, C, G * G) of a square grid to (1, C, H * W), as `F.interpolate` does with `how`."""
    side = math.isqrt(columns.shape[2])
    return F.interpolate(columns.unflatten(2, (side, side)), size=size, **how).flatten(2)


def random_scale(limit: float, device: torch.device) -> Tensor:
    """Draw a factor (1,) from 1 / `limit` to `limit`, whose logarithm is uniform."""
    bound = math.log(limit)
    return torch.empty(1, device=device).uniform_(-bound, bound).exp()


def rotations(
    height: int, width: int, channels: int, base: float, device: torch.device, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines (P, channels) of DINOv3's rotary positions.

    A patch center has coordinates from -1 to 1, times `scale` (1,); the first half of the angles is for y
    and x, a quarter each, the second half repeats it.
    """
    frequencies = 2 * math.pi * base ** -torch.arange(0, 1, 4 / channels, device=device)  # (channels / 4,)
    if scale is not None:
        frequencies = frequencies * scale
    y, x = (
        (2 * (torch.arange(side, device=device) + 0.5) / side - 1)[:, None] * frequencies
        for side in (height, width)
    )
    grid = torch.stack((y[:, None].expand(-1, width, -1), x[None].expand(height, -1, -1)), dim=2)
    angles = grid.flatten(2).flatten(0, 1).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the last P tokens of queries or keys (B, h, N, D); the others are unchanged."""
    cos, sin = (part.to(x.dtype) for part in rotation)
    others, patches = x.split([x.shape[2] - cos.shape[0], cos.shape[0]], dim=2)
    first, second = patches.chunk(2, dim=-1)
    rotated = patches * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((others, rotated), dim=2)


def relative_offsets(height: int, width: int, device: torch.device) -> Tensor:
    """Return the row of a bias table ((2H-1) * (2W-1) + 3, h) for each pair of tokens, (1 + P, 1 + P).

    Those of the class token are counted from the end, so that an exported file takes any size.
    """
    y, x = torch.arange(height, device=device), torch.arange(width, device=device)
    dy, dx = y[:, None] - y + height - 1, x[:, None] - x + width - 1
    offsets = dy[:, None, :, None] * (2 * width - 1) + dx[:, None]  # (H, W, H, W)
    offsets = F.pad(offsets.flatten(2).flatten(0, 1), (1, 0, 1, 0), value=-1)
    offsets[0, 1:], offsets[1:, 0] = -3, -2
    return offsets


def relative_bias(table: Tensor, layout: TokenLayout, tokens: int) -> Tensor:
    """Return the bias (h, tokens, tokens) of attention logits from a table ((2G-1)^2 + 3, h).

    The table is resized bilinearly to the grid. Tokens before the class token get and give no bias.
    """
    assert layout.offsets is not None
    side = math.isqrt(len(table) - CLASS_OFFSETS)
    size = (2 * layout.height - 1, 2 * layout.width - 1)
    if torch.compiler.is_exporting() or size != (side, side):
        columns = _resize_square(table[:-CLASS_OFFSETS].T[None], size, mode="bilinear")
        table = torch.cat((columns[0].T, table[-CLASS_OFFSETS:]))
    bias = table[layout.offsets].permute(2, 0, 1)
    others = tokens - bias.shape[-1]
    return F.pad(bias, (others, 0, others, 0)) if others else bias.contiguous()
