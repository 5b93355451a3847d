"""Swin Transformer: attention within windows, which every other block shifts by half a window.

Shapes: `B` images, `C` channels, `H, W` the sides of a map in tokens (padded ones in window code),
`M` windows of an image, `T` tokens of a window (its side squared), `h` heads. Maps are (B, H, W, C) inside.
"Swin Transformer: Hierarchical Vision Transformer using Shifted Windows" (ICCV 2021).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mask2former.modeling.backbone.base import Backbone
from mask2former.modeling.backbone.windows import (
    WindowLayout,
    join_windows,
    next_multiple,
    pad_to_multiple,
    shift_mask,
    split_windows,
    window_layout,
)
from mask2former.modeling.layers.activation_checkpointing import checkpoint_activations
from mask2former.modeling.layers.chunking import map_chunks, should_chunk
from mask2former.modeling.layers.drop_path import DropPath
from mask2former.structures import ShapeSpec
from mask2former.utils.registry import BACKBONE


def relative_position_index(window: int) -> Tensor:
    """Return the row of the bias table for each pair (query, key) of a window's tokens: (T, T) int64."""
    row, column = torch.arange(window**2) // window, torch.arange(window**2) % window
    dy, dx = row[:, None] - row, column[:, None] - column
    return (dy + window - 1) * (2 * window - 1) + dx + window - 1


class WindowAttention(nn.Module):
    """Self-attention within windows, with a learned bias for each offset between tokens (section 3.2)."""

    relative_position_index: Tensor

    def __init__(
        self,
        channels: int,
        *,
        window: int,
        heads: int,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.scale = qk_scale or (channels // heads) ** -0.5
        self.attention_dropout = attention_dropout
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_position_index(window))
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.proj = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, windows: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend within windows (B*M, T, C); shifted windows need a mask (M, T, T) of `shift_mask`."""
        query, key, value = self.qkv(windows).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=self._bias(mask, windows.shape[0]).to(query.dtype),
            dropout_p=self.attention_dropout if self.training else 0.0,
            scale=self.scale,
        )
        return self.dropout(self.proj(mixed.transpose(1, 2).flatten(2)))

    def _bias(self, mask: Tensor | None, count: int) -> Tensor:
        """Return the term to add to the logits: (1, h, T, T), or (count, h, T, T) with a mask."""
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1).contiguous()
        if mask is None:
            return bias[None]
        per_window = bias + mask[:, None]  # (M, h, T, T)
        return per_window.expand(count // mask.shape[0], -1, -1, -1, -1).flatten(0, 1)


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, channels: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x)))))


class SwinBlock(nn.Module):
    """Window attention and MLP, both pre-norm and residual; `shifted` windows start half a window later."""

    def __init__(
        self,
        channels: int,
        *,
        window: int,
        shifted: bool,
        mlp_ratio: float,
        drop_path: float,
        dropout: float,
        **attention: Any,
    ) -> None:
        super().__init__()
        self.window, self.shift = window, window // 2 if shifted else 0
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, window=window, dropout=dropout, **attention)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, int(channels * mlp_ratio), dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Update x (B, H, W, C); shifted windows use the mask."""
        x = x + self.drop_path(self._attend(self.norm1(x), mask if self.shift else None))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        height, width = x.shape[1:3]
        x = pad_to_multiple(x, self.window)  # after the norm, so that padding, which is attended to, is zero
        padded = x.shape[1:3]
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        x = join_windows(self.attn(split_windows(x, self.window), mask), self.window, *padded)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x[:, :height, :width]

    def infer_(self, x: Tensor, layout: WindowLayout) -> None:
        """Compute `forward` without gradients for one image's tokens x (N, C), in place and in chunks.

        Gathering tokens into windows also pads and shifts them.
        """
        count, side = layout.tokens.shape
        border = count - len(layout.mask)
        values = side * self.attn.qkv.out_features  # of a window
        windows = x.new_empty(count, side, x.shape[1])

        def gather(tokens: Tensor) -> Tensor:
            return self.norm1(x.index_select(0, tokens.flatten())).unflatten(0, tokens.shape)

        def attend(tokens: Tensor) -> Tensor:
            return self.attn(gather(tokens))

        def attend_at_border(tokens: Tensor, padding: Tensor, mask: Tensor) -> Tensor:
            return self.attn(gather(tokens).masked_fill(padding, 0), mask)

        def finish(x: Tensor, places: Tensor) -> Tensor:
            x = x + windows.flatten(0, 1).index_select(0, places)
            return x.add_(self.mlp(self.norm2(x)))

        map_chunks(attend, values, windows[:border], layout.tokens[:border])
        at_border = (layout.tokens[border:], layout.padding, layout.mask)
        map_chunks(attend_at_border, values, windows[border:], *at_border)
        map_chunks(finish, self.mlp.fc1.out_features, x, x, layout.places)


class PatchMerging(nn.Module):
    """Merging of four neighbors into one token of twice the width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H/2, W/2, 2C), sides rounded up."""
        x = pad_to_multiple(x, 2).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (B, H/2, 2, W/2, 2, C)
        neighbors = x.permute(0, 1, 3, 4, 2, 5).flatten(3)  # in the published order: down before right
        return self.reduction(self.norm(neighbors))


class SwinStage(nn.Module):
    """Blocks at one resolution; `downsample`, if any, leads to the next stage."""

    def __init__(
        self,
        channels: int,
        downsample: PatchMerging | None,
        *,
        window: int,
        drop_paths: Sequence[float],
        **block: Any,
    ) -> None:
        super().__init__()
        self.window = window
        self.blocks = nn.ModuleList(
            SwinBlock(channels, window=window, shifted=i % 2 == 1, drop_path=rate, **block)
            for i, rate in enumerate(drop_paths)
        )
        self.downsample = downsample

    def forward(self, x: Tensor, checkpointing: bool) -> Tensor:
        """Apply the blocks to (B, H, W, C), without downsampling."""
        height, width = x.shape[1:3]
        if should_chunk(x) and not self.training:
            shifts = (0, self.window // 2)
            layouts = {shift: window_layout(height, width, self.window, shift) for shift in shifts}
            x = x.clone(memory_format=torch.contiguous_format)
            for image in x.flatten(1, 2):
                for block in self.blocks.children():
                    assert isinstance(block, SwinBlock)
                    block.infer_(image, layouts[block.shift])
            return x
        rows, columns = (next_multiple(side, self.window) for side in (height, width))
        mask = shift_mask(rows, columns, self.window, x.device)
        for block in self.blocks:
            x = checkpoint_activations(block, x, mask) if checkpointing else block(x, mask)
        return x


class PatchEmbed(nn.Module):
    """Embedding of each patch of `size` x `size` pixels as a token."""

    def __init__(self, inputs: int, channels: int, *, size: int, norm: bool) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, channels, size, stride=size)
        self.norm = nn.LayerNorm(channels) if norm else None

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, H / size, W / size, C), sides rounded up."""
        size = self.proj.stride[0]
        x = F.pad(images, (0, -images.shape[3] % size, 0, -images.shape[2] % size))
        x = self.proj(x).permute(0, 2, 3, 1)
        return x if self.norm is None else self.norm(x)


class SwinTransformer(Backbone):
    """Swin with one normalized map per stage, `res2`, `res3`, ..., at strides `patch_size` * 1, 2, 4, 8.

    Stages after the last requested one are not built.

    Args:
        embed_dim: width of the first stage; each later stage doubles it.
        depths, num_heads: blocks and attention heads of each stage.
        window_size: side of a window in tokens.
        drop_rate: dropout of tokens, of projections and inside MLPs; attn_drop_rate: of attention weights.
        drop_path_rate: of the last block; it grows linearly from 0 over all blocks of the network.
        ape: add a learned absolute position to the patches, resized from that of pretrain_img_size.

    Raises:
        ValueError: heads do not match the depths or widths; an unknown out feature; a size below 1.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        pretrain_img_size: int = 224,
        patch_size: int = 4,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.3,
        ape: bool = False,
        patch_norm: bool = True,
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        checkpointing: bool = False,
    ) -> None:
        widths = [embed_dim * 2**i for i in range(len(depths))]
        _check_sizes(num_heads, widths, embed_dim=embed_dim, patch_size=patch_size, window_size=window_size)
        shapes = {f"res{i + 2}": ShapeSpec(width, patch_size * 2**i) for i, width in enumerate(widths)}
        super().__init__(shapes, out_features)
        self.checkpointing = checkpointing
        self.patch_embed = PatchEmbed(in_channels, embed_dim, size=patch_size, norm=patch_norm)
        side = pretrain_img_size // patch_size
        self.absolute_pos_embed = nn.Parameter(torch.empty(1, embed_dim, side, side)) if ape else None
        self.pos_drop = nn.Dropout(drop_rate)
        block: dict[str, Any] = {
            "window": window_size,
            "mlp_ratio": mlp_ratio,
            "qkv_bias": qkv_bias,
            "qk_scale": qk_scale,
            "attention_dropout": attn_drop_rate,
            "dropout": drop_rate,
        }
        self.names = list(shapes)[: max(list(shapes).index(name) for name in self.output_shape()) + 1]
        steps = max(sum(depths) - 1, 1)
        rates = [drop_path_rate * i / steps for i in range(sum(depths))]
        self.layers = nn.ModuleList()
        for i, name in enumerate(self.names):
            merging = PatchMerging(widths[i]) if i + 1 < len(self.names) else None
            first = sum(depths[:i])
            block |= {"heads": num_heads[i], "drop_paths": rates[first : first + depths[i]]}
            self.layers.append(SwinStage(widths[i], merging, **block))
            if name in self.output_shape():
                self.add_module(f"norm{i}", nn.LayerNorm(widths[i]))
        self.apply(_initialize)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map normalized images (B, 3, H, W) to maps (B, C, H / stride, W / stride), sides rounded up."""
        x = self.patch_embed(images)
        if self.absolute_pos_embed is not None:
            position = F.interpolate(self.absolute_pos_embed, x.shape[1:3], mode="bicubic")
            x = x + position.permute(0, 2, 3, 1)
        x = self.pos_drop(x)
        maps = {}
        for i, (name, stage) in enumerate(zip(self.names, self.layers.children(), strict=True)):
            assert isinstance(stage, SwinStage)
            x = stage(x, self.checkpointing)
            if name in self.output_shape():
                # This view stays channels last in memory, which is fast for convolutions and flattening.
                maps[name] = self.get_submodule(f"norm{i}")(x).permute(0, 3, 1, 2)
            if stage.downsample is not None:
                x = stage.downsample(x)
        return maps


def _check_sizes(num_heads: Sequence[int], widths: Sequence[int], **sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"MODEL.SWIN.{name.upper()} is {size}; it must be at least 1")
    if len(num_heads) != len(widths) or any(h < 1 or w % h for w, h in zip(widths, num_heads, strict=True)):
        raise ValueError(
            f"MODEL.SWIN.NUM_HEADS is {list(num_heads)}; each stage needs a number that divides its width; "
            f"DEPTHS and EMBED_DIM give stages of widths {list(widths)}"
        )


def _initialize(module: nn.Module) -> None:
    """Initialize as Swin's authors do: truncated normal matrices, zero biases, else torch's defaults."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, WindowAttention):
        nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)
    elif isinstance(module, SwinTransformer) and module.absolute_pos_embed is not None:
        nn.init.trunc_normal_(module.absolute_pos_embed, std=0.02)


@BACKBONE.register_as("D2SwinTransformer")
def build_swin_backbone(cfg: Any, input_shape: ShapeSpec) -> SwinTransformer:
    """Build the Swin of MODEL.SWIN for images of `input_shape.channels` channels.

    It ignores MODEL.BACKBONE.FREEZE_AT, as the published implementation does.

    Raises:
        ValueError: values that do not fit each other, with their keys.
    """
    keys = {name.lower(): value for name, value in cfg.MODEL.SWIN.items()}
    keys.pop("use_checkpoint", None)  # on Detectron2's node: its name of MODEL.ACTIVATION_CHECKPOINTING
    checkpointing = cfg.MODEL.ACTIVATION_CHECKPOINTING
    return SwinTransformer(in_channels=input_shape.channels, checkpointing=checkpointing, **keys)
