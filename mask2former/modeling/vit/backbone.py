"""A plain vision transformer as a backbone: four maps, all made from its last one.

Shapes: `B` images, `C` channels, `H, W` the sides of an image in pixels.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mask2former.modeling.backbone.base import Backbone
from mask2former.modeling.vit.scaling import scale_blocks
from mask2former.modeling.vit.transformer import VisionTransformer, build_vit
from mask2former.structures import ShapeSpec
from mask2former.utils.registry import BACKBONE

STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


class SimplePyramid(Backbone):
    """A plain vision transformer, whose last map is doubled and halved to strides 4, 8, 16 and 32.

    Args:
        vit: a vision transformer with patches of 16 pixels.
        out_features: the maps to return, of `STRIDES`.

    Raises:
        ValueError: another patch size; an unknown out feature.
    """

    def __init__(self, vit: VisionTransformer, *, out_features: Sequence[str] = tuple(STRIDES)) -> None:
        width, size = vit.embed_dim, vit.patch_size
        if size != STRIDES["res4"]:
            raise ValueError(f"MODEL.VIT.PATCH_SIZE is {size}; a pyramid at strides 4 to 32 needs 16")
        super().__init__({name: ShapeSpec(width, stride) for name, stride in STRIDES.items()}, out_features)
        self.vit = vit
        doublings = {name: 2 - i for i, name in enumerate(STRIDES)}
        self.pyramid = nn.ModuleDict(
            {name: scale_blocks(width, doublings[name]) for name in self.output_shape()}
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map normalized images (B, 3, H, W) to maps (B, C, H / stride, W / stride), sides rounded up."""
        tokens, layout = self.vit(images)
        last = self.vit.to_map(tokens, layout)
        maps = {}
        for name, (_, stride) in self.output_shape().items():
            height, width = (-(-side // stride) for side in images.shape[2:])
            maps[name] = self.pyramid[name](last)[:, :, :height, :width]  # without what padded patches add
        return maps


@BACKBONE.register_as("ViTSimplePyramid")
def build_simple_pyramid(cfg: Any, input_shape: ShapeSpec) -> SimplePyramid:
    """Build the pyramid on the vision transformer of MODEL.VIT. It ignores MODEL.BACKBONE.FREEZE_AT.

    Raises:
        ValueError: values that do not fit each other, with their keys.
    """
    return SimplePyramid(build_vit(cfg, input_shape), out_features=cfg.MODEL.VIT.OUT_FEATURES)
