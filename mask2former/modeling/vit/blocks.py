"""Blocks of a plain vision transformer: attention among all tokens and a feed-forward network.

Parameters are named as in DINOv2 and timm; those of BEiT's attention as in BEiT.

Shapes: `B` images, `N` tokens of the sequence, `Q` its first tokens, which have blocked keys, `P` its last
ones, the patches, `M` windows of their grid, `T` patches of a window, `C` channels, `h` heads, `D` channels
of a head.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mask2former.modeling.backbone.swin import Mlp
from mask2former.modeling.backbone.windows import join_windows, pad_to_multiple, split_windows
from mask2former.modeling.layers.drop_path import DropPath
from mask2former.modeling.vit.positions import CLASS_OFFSETS, TokenLayout, relative_bias, rotate


class Attention(nn.Module):
    """Self-attention of all tokens, or within windows of patches.

    In windows, a patch attends to those of its window and to all tokens before the patches; these attend to
    all tokens.

    Args:
        width, heads: channels of a token, and the heads that share them.
        window: side of a window in patches; 0: no windows.
        key_bias: add a bias to keys also, not to queries and values alone.
        bias_grid: side of the grid that the table of relative positions is for; None: no table.
    """

    def __init__(self, width: int, heads: int, *, window: int, key_bias: bool, bias_grid: int | None) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(width, 3 * width, bias=key_bias)
        self.q_bias = None if key_bias else nn.Parameter(torch.zeros(width))
        self.v_bias = None if key_bias else nn.Parameter(torch.zeros(width))
        rows = (2 * bias_grid - 1) ** 2 + CLASS_OFFSETS if bias_grid else 0
        self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, heads)) if rows else None
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, layout: TokenLayout, blocked: Tensor | None = None) -> Tensor:
        """Attend among tokens x (B, N, C); `blocked` (B, Q, N) is True where the first Q may not attend."""
        qkv = F.linear(x, self.qkv.weight, self._bias())
        query, key, value = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if layout.rotation is not None:
            query, key = (rotate(part, layout.rotation) for part in (query, key))
        bias = None
        if self.relative_position_bias_table is not None:
            bias = relative_bias(self.relative_position_bias_table, layout, x.shape[1]).to(query.dtype)
        if self.window:
            mixed = _attend_in_windows(query, key, value, layout, self.window, blocked)
        else:
            mixed = _attend(query, key, value, bias, blocked)
        return self.proj(mixed.transpose(1, 2).flatten(2))

    def _bias(self) -> Tensor | None:
        """Return the bias (3 * C) of queries, keys and values."""
        if self.q_bias is None or self.v_bias is None:
            return self.qkv.bias
        return torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, blocked: Tensor | None) -> Tensor:
    """Attend (B, h, N, C / h); bias (h, N, N). Tokens without a mask of their own keep the faster kernel."""
    if blocked is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=None if bias is None else bias[None]
        )
    count = blocked.shape[1]
    mask = torch.zeros(blocked.shape, dtype=query.dtype, device=query.device)
    mask = mask.masked_fill(blocked, -math.inf).unsqueeze(1)
    rest = None
    if bias is not None:
        mask, rest = mask + bias[:, :count], bias[None, :, count:]
    masked = F.scaled_dot_product_attention(query[:, :, :count], key, value, attn_mask=mask)
    free = F.scaled_dot_product_attention(query[:, :, count:], key, value, attn_mask=rest)
    return torch.cat((masked, free), dim=2)


def _attend_in_windows(
    query: Tensor, key: Tensor, value: Tensor, layout: TokenLayout, window: int, blocked: Tensor | None
) -> Tensor:
    """Attend (B, h, N, D): patches within windows, tokens before them among all; windows count as heads."""
    count = query.shape[2] - layout.patches
    others = _attend(query[:, :, :count], key, value, None, blocked)
    windows = -(-layout.height // window) * -(-layout.width // window)  # M

    def with_others(x: Tensor) -> Tensor:
        shared = x[:, :, :count].repeat_interleave(windows, dim=1)
        return torch.cat((shared, _split(x[:, :, count:], layout, window)), dim=2)

    patches = torch.ones_like(query[:1, :1, count:, :1], dtype=torch.bool)
    inside = _split(patches, layout, window)  # (1, M, T, 1)
    may_attend = F.pad(inside.mT, (count, 0), value=True).repeat(1, query.shape[1], 1, 1)
    mixed = F.scaled_dot_product_attention(
        _split(query[:, :, count:], layout, window),
        with_others(key),
        with_others(value),
        attn_mask=may_attend,
    )
    return torch.cat((others, _join(mixed, layout, window)), dim=2)


def _split(patches: Tensor, layout: TokenLayout, window: int) -> Tensor:
    """Split patches (B, h, P, D) into windows (B, h * M, T, D), padded with zeros."""
    grid = patches.unflatten(2, (layout.height, layout.width)).flatten(0, 1)
    return split_windows(pad_to_multiple(grid, window), window).unflatten(0, (patches.shape[0], -1))


def _join(windows: Tensor, layout: TokenLayout, window: int) -> Tensor:
    """Invert `_split`."""
    padded = (-(-side // window) * window for side in (layout.height, layout.width))
    grid = join_windows(windows.flatten(0, 1), window, *padded)[:, : layout.height, : layout.width]
    return grid.flatten(1, 2).unflatten(0, (windows.shape[0], -1))


class SwiGlu(nn.Module):
    """A gated feed-forward network; its hidden width is two thirds of that of an `Mlp`, in multiples of 8."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        hidden = -(-int(hidden * 2 / 3) // 8) * 8
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, hidden = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * hidden)


class LayerScale(nn.Module):
    """Multiplication of each channel of a residual branch by a learned factor, at first a small one."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, branch: Tensor) -> Tensor:
        return branch * self.gamma


class Block(nn.Module):
    """Attention and feed-forward network, both pre-norm, residual and scaled.

    Args:
        width, heads, window, key_bias, bias_grid: as of `Attention`.
        hidden: width of the feed-forward network; `gated`: it is a `SwiGlu`.
        layer_scale: initial factor of both branches; 0: they are not scaled.
        norm_eps: of both norms.
        drop_path: probability of dropping a branch in training.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        window: int,
        key_bias: bool,
        bias_grid: int | None,
        hidden: int,
        gated: bool,
        layer_scale: float,
        norm_eps: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = Attention(width, heads, window=window, key_bias=key_bias, bias_grid=bias_grid)
        self.ls1 = LayerScale(width, layer_scale) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = SwiGlu(width, hidden) if gated else Mlp(width, hidden, dropout=0.0)
        self.ls2 = LayerScale(width, layer_scale) if layer_scale else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, layout: TokenLayout, blocked: Tensor | None = None) -> Tensor:
        """Update tokens x (B, N, C); `blocked` (B, Q, N) is True where the first Q may not attend.

        Each of the Q must keep a key.
        """
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x), layout, blocked)))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))
