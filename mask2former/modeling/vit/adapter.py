"""ViT-Adapter: four maps of a plain vision transformer that exchanges with convolutional maps of the image.

"Vision Transformer Adapter for Dense Predictions" (ICLR 2023). Before each quarter of the blocks, patches
attend to the convolutional maps; after it, these attend to the patches.

Shapes: `B` images, `S` cells of the prior's maps at strides 8, 16 and 32 together, `C` channels.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mask2former.modeling.backbone.base import Backbone
from mask2former.modeling.backbone.windows import next_multiple
from mask2former.modeling.layers.attention import MSDeformAttn, map_sequence
from mask2former.modeling.layers.norm import get_norm
from mask2former.modeling.vit.adapter_parts import (
    PRIOR_LEVELS,
    Geometry,
    Interaction,
    SpatialPrior,
    split_maps,
)
from mask2former.modeling.vit.backbone import STRIDES
from mask2former.modeling.vit.transformer import VisionTransformer, build_vit
from mask2former.structures import ShapeSpec
from mask2former.utils.registry import BACKBONE

GROUPS = 4  # of blocks, each with an interaction; one for each map
EXTRA_EXTRACTORS = 2  # after the last group


class ViTAdapter(Backbone):
    """A plain vision transformer with adapter: maps `res2` to `res5` at strides 4 to 32, all of its width.

    Args:
        vit: a vision transformer without final norm, whose depth is a multiple of `GROUPS`.
        num_heads: of the deformable attention.
        value_ratio: width of its values over that of the vision transformer.
        norm: of the convolutions and of the maps, as in configs.
        drop_path_rate: of all extractors.
        checkpointing: recompute injectors and extractors in the backward pass.

    Raises:
        ValueError: sizes that do not fit, with their keys; an unknown norm.
    """

    def __init__(
        self,
        vit: VisionTransformer,
        *,
        in_channels: int = 3,
        num_heads: int = 16,
        value_ratio: float = 0.5,
        norm: str = "SyncBN",
        drop_path_rate: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        width = vit.embed_dim
        _check(vit, num_heads, int(width * value_ratio))
        super().__init__({name: ShapeSpec(width, stride) for name, stride in STRIDES.items()}, list(STRIDES))
        self.vit = vit
        self.level_embed = nn.Parameter(torch.randn(PRIOR_LEVELS, width))
        self.spm = SpatialPrior(in_channels=in_channels, width=width, norm=norm)
        self.interactions = nn.ModuleList(
            Interaction(
                width=width,
                num_heads=num_heads,
                value_ratio=value_ratio,
                drop_path=drop_path_rate,
                extra=EXTRA_EXTRACTORS if i == GROUPS - 1 else 0,
                checkpointing=checkpointing,
            )
            for i in range(GROUPS)
        )
        self.up = nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)
        self.norm1, self.norm2, self.norm3, self.norm4 = (
            get_norm(norm, width) or nn.Identity() for _ in STRIDES
        )
        for part in (self.spm, self.interactions, self.up):
            part.apply(_initialize)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map normalized images (B, 3, H, W) to maps (B, C, H / stride, W / stride), sides rounded up.

        Images are padded at the right and bottom to whole patches and whole cells of the coarsest map.
        """
        sides = images.shape[2:]
        height, width = (next_multiple(side, STRIDES["res5"]) for side in sides)
        images = F.pad(images, (0, width - sides[1], 0, height - sides[0]))
        maps = {}
        norms = (self.norm1, self.norm2, self.norm3, self.norm4)
        for (name, stride), norm, x in zip(STRIDES.items(), norms, self._maps(images), strict=True):
            rows, columns = (-(-side // stride) for side in sides)
            maps[name] = norm(x)[:, :, :rows, :columns]  # without what padding adds
        return maps

    def _maps(self, images: Tensor) -> list[Tensor]:
        """Return the four maps before their norms."""
        fine, *coarse = self.spm(images)
        cells = torch.cat(
            [x.flatten(2).mT + level for x, level in zip(coarse, self.level_embed, strict=True)], dim=1
        )
        x, layout = self.vit.embed(images)
        prior = tuple((level.shape[2], level.shape[3]) for level in coarse)
        geometry = Geometry(
            patches=map_sequence(((layout.height, layout.width),), x.device),
            prior=map_sequence(prior, x.device),
        )
        after_groups = []
        for i, interaction in enumerate(self.interactions.children()):
            assert isinstance(interaction, Interaction)
            special, patches = x.split([self.vit.special_tokens, layout.patches], dim=1)
            x = torch.cat((special, interaction.inject(patches, cells, geometry)), dim=1)
            group = len(self.vit.blocks) // GROUPS
            x = self.vit.run(x, layout, group * i, group * (i + 1))
            cells = interaction.extract(cells, x[:, self.vit.special_tokens :], geometry)
            after_groups.append(self.vit.to_map(x, layout))
        maps = split_maps(cells, geometry.prior)
        maps = [fine + self.up(maps[0]), *maps]
        return [x + _resize(patches, x) for x, patches in zip(maps, after_groups, strict=True)]


def _resize(patches: Tensor, like: Tensor) -> Tensor:
    """Resize a map (B, C, H, W) bilinearly to the sides of another one."""
    if patches.shape[2:] == like.shape[2:]:
        return patches
    return F.interpolate(patches, size=like.shape[2:], mode="bilinear", align_corners=False)


def _check(vit: VisionTransformer, num_heads: int, value_width: int) -> None:
    """Raise ValueError if the adapter does not fit the vision transformer."""
    if len(vit.blocks) % GROUPS:
        raise ValueError(f"MODEL.VIT.DEPTH is {len(vit.blocks)}; ViT-Adapter needs a multiple of {GROUPS}")
    if vit.patch_size != STRIDES["res4"]:
        raise ValueError(f"MODEL.VIT.PATCH_SIZE is {vit.patch_size}; ViT-Adapter needs {STRIDES['res4']}")
    if num_heads < 1 or value_width < 1 or value_width % num_heads:
        raise ValueError(
            f"MODEL.VIT_ADAPTER.NUM_HEADS is {num_heads}; it must divide EMBED_DIM * VALUE_RATIO, which is "
            f"{value_width}"
        )


def _initialize(module: nn.Module) -> None:
    """Initialize as the authors do: matrices truncated normal, convolutions normal by their fan-out."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, MSDeformAttn):
        module.reset_parameters()


@BACKBONE.register_as("ViTAdapter")
def build_vit_adapter(cfg: Any, input_shape: ShapeSpec) -> ViTAdapter:
    """Build the adapter on the vision transformer of MODEL.VIT, without its final norm.

    It ignores MODEL.BACKBONE.FREEZE_AT. Drop path of extractors is that of the last block, as published.

    Raises:
        ValueError: values that do not fit each other, with their keys.
    """
    keys, features = cfg.MODEL.VIT_ADAPTER, list(cfg.MODEL.VIT.OUT_FEATURES)
    if features != list(STRIDES):
        raise ValueError(f"MODEL.VIT.OUT_FEATURES is {features}; ViT-Adapter has {list(STRIDES)}")
    vit = build_vit(cfg, input_shape)
    vit.norm = nn.Identity()
    return ViTAdapter(
        vit,
        in_channels=input_shape.channels,
        num_heads=keys.NUM_HEADS,
        value_ratio=keys.VALUE_RATIO,
        norm=keys.NORM,
        drop_path_rate=cfg.MODEL.VIT.DROP_PATH_RATE,
        checkpointing=cfg.MODEL.ACTIVATION_CHECKPOINTING,
    )
