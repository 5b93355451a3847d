"""A plain vision transformer as a backbone that gives the maps after four of its blocks.

BEiT resizes them to the strides of a pyramid, SETR takes them as they are.

Shapes: `B` images, `C` channels, `H, W` the sides of an image in pixels.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mask2former.modeling.backbone.base import Backbone
from mask2former.modeling.layers.norm import get_norm
from mask2former.modeling.vit.backbone import STRIDES
from mask2former.modeling.vit.transformer import VisionTransformer, build_vit
from mask2former.structures import ShapeSpec
from mask2former.utils.registry import BACKBONE


class TappedViT(Backbone):
    """A plain vision transformer without final norm, with maps `res2` to `res5` after four of its blocks.

    Args:
        vit: a vision transformer with patches of 16 pixels.
        blocks: the blocks that the maps follow, numbered from 0.
        pyramid: resize the maps to strides 4, 8, 16 and 32; False: all have that of the patches.
        norm: between the two doublings of `res2`, as in configs.

    Raises:
        ValueError: blocks that are not four ascending numbers of blocks; another patch size; an unknown norm.
    """

    def __init__(self, vit: VisionTransformer, *, blocks: Sequence[int], pyramid: bool, norm: str) -> None:
        _check(vit, blocks)
        width, patch = vit.embed_dim, vit.patch_size
        strides = STRIDES if pyramid else dict.fromkeys(STRIDES, patch)
        super().__init__({name: ShapeSpec(width, stride) for name, stride in strides.items()}, list(STRIDES))
        self.vit = vit
        self.tapped = list(blocks)
        self.neck = nn.ModuleDict(
            {
                "res2": nn.Sequential(
                    _doubling(width), get_norm(norm, width) or nn.Identity(), nn.GELU(), _doubling(width)
                ),
                "res3": _doubling(width),
                "res4": nn.Identity(),
                "res5": nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True),
            }
            if pyramid
            else {name: nn.Identity() for name in STRIDES}
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map normalized images (B, 3, H, W) to maps (B, C, H / stride, W / stride), sides rounded up."""
        x, layout = self.vit.embed(images)
        maps, first = {}, 0
        for (name, (_, stride)), block in zip(self.output_shape().items(), self.tapped, strict=True):
            x = self.vit.run(x, layout, first, block + 1)
            rows, columns = (-(-side // stride) for side in images.shape[2:])
            resized = self.neck[name](self.vit.to_map(x, layout))
            maps[name] = resized[:, :, :rows, :columns]  # without what padded patches add
            first = block + 1
        return maps


def _doubling(width: int) -> nn.Module:
    return nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)


def _check(vit: VisionTransformer, blocks: Sequence[int]) -> None:
    """Raise ValueError if the maps cannot be those after these blocks."""
    if vit.patch_size != STRIDES["res4"]:
        raise ValueError(f"MODEL.VIT.PATCH_SIZE is {vit.patch_size}; maps at strides 4 to 32 need 16")
    ascending = list(blocks) == sorted(set(blocks)) and len(blocks) == len(STRIDES)
    if not ascending or not 0 <= blocks[0] <= blocks[-1] < len(vit.blocks):
        raise ValueError(
            f"MODEL.VIT_TAPS.BLOCKS is {list(blocks)}; it must be four ascending numbers from 0 to "
            f"{len(vit.blocks) - 1}, as MODEL.VIT.DEPTH is {len(vit.blocks)}"
        )


@BACKBONE.register_as("TappedViT")
def build_tapped_vit(cfg: Any, input_shape: ShapeSpec) -> TappedViT:
    """Build the backbone of MODEL.VIT and MODEL.VIT_TAPS. Blocks after the last tapped one are dropped.

    It ignores MODEL.BACKBONE.FREEZE_AT, MODEL.VIT.OUT_FEATURES and MODEL.VIT.FINAL_NORM.

    Raises:
        ValueError: values that do not fit each other, with their keys.
    """
    vit, keys = build_vit(cfg, input_shape), cfg.MODEL.VIT_TAPS
    model = TappedViT(vit, blocks=keys.BLOCKS, pyramid=keys.PYRAMID, norm=keys.NORM)
    vit.norm = nn.Identity()
    del vit.blocks[keys.BLOCKS[-1] + 1 :]
    return model
