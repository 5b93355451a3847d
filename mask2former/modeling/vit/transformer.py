"""The plain vision transformer: patches and special tokens of an image through blocks of one width.

By its arguments it is BEiT (relative positions), DINOv2 (learned positions, register tokens) or DINOv3
(rotary positions, register tokens). Heads that add tokens or attention masks, and adapters that read and
change tokens between blocks, call `embed`, `run` and `to_map` themselves.

"BEiT: BERT Pre-Training of Image Transformers" (ICLR 2022), "DINOv2: Learning Robust Visual Features without
Supervision" and "Vision Transformers Need Registers" (2023), "DINOv3" (2025).

Shapes: `B` images, `H, W` the grid of an image's patches, `P = H * W`, `S` special tokens, `N = S + P`,
`C` channels.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mask2former.modeling.backbone.swin import PatchEmbed
from mask2former.modeling.layers.activation_checkpointing import checkpoint_activations
from mask2former.modeling.vit.blocks import Block
from mask2former.modeling.vit.positions import (
    TokenLayout,
    random_scale,
    relative_offsets,
    resize_grid,
    rotations,
)
from mask2former.structures import ShapeSpec

Positions = Literal["learned", "relative", "rotary"]


class VisionTransformer(nn.Module):
    """A plain vision transformer, which keeps all tokens.

    Args:
        patch_size: side of a patch in pixels.
        embed_dim, depth, num_heads: width of all tokens, blocks, and heads of a block.
        mlp_ratio: hidden width of the feed-forward networks over embed_dim; "swiglu" takes two thirds of it.
        ffn: "mlp", or "swiglu": a gated network, as in DINOv2-g.
        registers: tokens that hold nothing of the image, after the class token.
        positions: "learned" of each patch, "relative" between tokens, or "rotary".
        position_grid: side of the grid of learned and relative positions, which are resized to other grids.
        rope_base: base of the frequencies of rotary positions.
        rope_rescale: in training, they are multiplied by a random factor of each batch, from 1 / rope_rescale
            to rope_rescale, as DINOv3 was trained; 1: they are not.
        key_bias: queries, keys and values have biases; False: queries and values alone.
        window_size: side of the windows of attention in patches; 0: patches attend to all.
        global_blocks: indices of the blocks in which they attend to all even so.
        layer_scale: initial factor of residual branches; 0: they are not scaled.
        final_norm: `norm` is a layer norm; False: it changes nothing.
        drop_path_rate: of the last block; it grows linearly from 0.
        checkpointing: recompute the blocks in the backward pass.

    Attributes:
        blocks: the blocks, each called as `block(x, layout, blocked)`.
        norm: the norm of the tokens after the last block.
        special_tokens: S, the class token and the registers, which come before the patches.
        embed_dim, patch_size: as the arguments.

    Raises:
        ValueError: sizes do not fit each other, with the keys of MODEL.VIT.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        patch_size: int = 16,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        ffn: Literal["mlp", "swiglu"] = "mlp",
        registers: int = 4,
        positions: Positions = "learned",
        position_grid: int = 40,
        rope_base: float = 100.0,
        rope_rescale: float = 1.0,
        key_bias: bool = True,
        window_size: int = 0,
        global_blocks: Sequence[int] = (),
        layer_scale: float = 1e-5,
        norm_eps: float = 1e-6,
        final_norm: bool = True,
        drop_path_rate: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        _check(embed_dim, num_heads, registers, positions, ffn, rope_rescale)
        _check_windows(window_size, global_blocks, depth, positions)
        self.embed_dim, self.patch_size = embed_dim, patch_size
        self.special_tokens = 1 + registers
        self.positions = positions
        self.head_width, self.rope_base = embed_dim // num_heads, rope_base
        self.rope_rescale = rope_rescale
        self.checkpointing = checkpointing
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.reg_token = nn.Parameter(torch.empty(1, registers, embed_dim)) if registers else None
        learned = positions == "learned"
        self.pos_embed = nn.Parameter(torch.empty(1, position_grid**2, embed_dim)) if learned else None
        self.patch_embed = PatchEmbed(in_channels, embed_dim, size=patch_size, norm=False)
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                window=0 if i in global_blocks else window_size,
                key_bias=key_bias,
                bias_grid=position_grid if positions == "relative" else None,
                hidden=int(embed_dim * mlp_ratio),
                gated=ffn == "swiglu",
                layer_scale=layer_scale,
                norm_eps=norm_eps,
                drop_path=drop_path_rate * i / max(depth - 1, 1),
            )
            for i in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps) if final_norm else nn.Identity()
        self.apply(_initialize)

    def forward(self, images: Tensor) -> tuple[Tensor, TokenLayout]:
        """Return the normalized tokens (B, N, C) of images (B, 3, height, width), and their layout."""
        x, layout = self.embed(images)
        return self.norm(self.run(x, layout)), layout

    def embed(self, images: Tensor) -> tuple[Tensor, TokenLayout]:
        """Return the tokens (B, N, C) before the first block, and their layout.

        Images are padded at the right and bottom to whole patches.
        """
        x = self.patch_embed(images)
        layout = self._layout(x.shape[1], x.shape[2], x.device)
        patches = x.flatten(1, 2)
        if self.pos_embed is not None:
            patches = patches + resize_grid(self.pos_embed, layout.height, layout.width)
        special = [
            token.expand(x.shape[0], -1, -1)
            for token in (self.cls_token, self.reg_token)
            if token is not None
        ]
        return torch.cat((*special, patches), dim=1), layout

    def run(
        self,
        x: Tensor,
        layout: TokenLayout,
        first: int = 0,
        last: int | None = None,
        *,
        blocked: Tensor | None = None,
    ) -> Tensor:
        """Apply the blocks from `first` to before `last` (None: to the end) to tokens x (B, M, C).

        Any tokens may have been added before the others; the last P must be the patches of `layout`.
        `blocked` (B, Q, M), bool, is True where the first Q tokens may not attend; each must keep a key.
        """
        for block in list(self.blocks)[first:last]:
            inputs = (x, layout, blocked)
            x = checkpoint_activations(block, *inputs) if self.checkpointing else block(*inputs)
        return x

    def to_map(self, x: Tensor, layout: TokenLayout) -> Tensor:
        """Return the patches of tokens (B, M, C) as a map (B, C, H, W), channels last in memory."""
        return x[:, -layout.patches :].unflatten(1, (layout.height, layout.width)).permute(0, 3, 1, 2)

    def _layout(self, height: int, width: int, device: torch.device) -> TokenLayout:
        if self.positions == "rotary":
            rescaled = self.training and self.rope_rescale != 1
            scale = random_scale(self.rope_rescale, device) if rescaled else None
            rotation = rotations(height, width, self.head_width, self.rope_base, device, scale)
            return TokenLayout(height, width, rotation=rotation)
        if self.positions == "relative":
            return TokenLayout(height, width, offsets=relative_offsets(height, width, device))
        return TokenLayout(height, width)


def _check(width: int, heads: int, registers: int, positions: str, ffn: str, rope_rescale: float) -> None:
    """Raise ValueError if the arguments do not fit each other."""
    if positions not in ("learned", "relative", "rotary"):
        raise ValueError(f"MODEL.VIT.POSITIONS is '{positions}'; known are: learned, relative, rotary")
    if ffn not in ("mlp", "swiglu"):
        raise ValueError(f"MODEL.VIT.FFN is '{ffn}'; known are: mlp, swiglu")
    if heads < 1 or width % heads:
        raise ValueError(f"MODEL.VIT.NUM_HEADS is {heads}; it must divide EMBED_DIM, which is {width}")
    if positions == "rotary" and width // heads % 4:
        raise ValueError(
            f"MODEL.VIT.NUM_HEADS is {heads}, which leaves {width // heads} channels to a head; "
            "rotary POSITIONS need a multiple of 4"
        )
    if positions != "rotary" and rope_rescale != 1:
        raise ValueError(f"MODEL.VIT.ROPE_RESCALE is {rope_rescale}; without rotary POSITIONS it must be 1.0")
    if positions == "relative" and registers:
        raise ValueError(f"MODEL.VIT.REGISTERS is {registers}; it must be 0 with relative POSITIONS")


def _check_windows(window: int, global_blocks: Sequence[int], depth: int, positions: str) -> None:
    """Raise ValueError if there can be no such windows."""
    if window and positions == "relative":
        raise ValueError(f"MODEL.VIT.WINDOW_SIZE is {window}; it must be 0 with relative POSITIONS")
    if unknown := [i for i in global_blocks if not 0 <= i < depth]:
        raise ValueError(f"MODEL.VIT.GLOBAL_BLOCKS has {unknown[0]}; blocks are numbered 0 to {depth - 1}")


def _initialize(module: nn.Module) -> None:
    """Initialize as DINOv2 and BEiT do: truncated normal matrices and tokens, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, VisionTransformer):
        for parameter in (module.cls_token, module.reg_token, module.pos_embed):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)


def build_vit(cfg: Any, input_shape: ShapeSpec) -> VisionTransformer:
    """Build the vision transformer of MODEL.VIT for images of `input_shape.channels` channels.

    Raises:
        ValueError: values that do not fit each other, with their keys.
    """
    keys = {name.lower(): value for name, value in cfg.MODEL.VIT.items() if name != "OUT_FEATURES"}
    checkpointing = cfg.MODEL.ACTIVATION_CHECKPOINTING
    return VisionTransformer(in_channels=input_shape.channels, checkpointing=checkpointing, **keys)
