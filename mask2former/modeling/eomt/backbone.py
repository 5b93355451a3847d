"""The first blocks of EoMT's vision transformer, which see the image alone.

Shapes: `B` images, `N` tokens, `C` channels, `H, W` the sides of an image in pixels.
"""

from typing import Any

from torch import Tensor

from mask2former.modeling.backbone.base import Backbone
from mask2former.modeling.eomt.options import BACKBONE_NAME, first_blocks
from mask2former.modeling.vit.positions import TokenLayout
from mask2former.modeling.vit.transformer import VisionTransformer, build_vit
from mask2former.structures import ShapeSpec
from mask2former.utils.registry import BACKBONE

TOKENS = "tokens"


class EomtBackbone(Backbone):
    """A vision transformer up to block `first_blocks`; the head applies the others.

    Attributes:
        vit: the whole vision transformer.
    """

    def __init__(self, vit: VisionTransformer, *, first_blocks: int) -> None:
        super().__init__({TOKENS: ShapeSpec(vit.embed_dim, vit.patch_size)}, [TOKENS])
        self.vit = vit
        self.first_blocks = first_blocks

    def forward(self, images: Tensor) -> tuple[Tensor, TokenLayout]:
        """Return the tokens (B, N, C) of normalized images (B, 3, H, W), and their layout."""
        x, layout = self.vit.embed(images)
        return self.vit.run(x, layout, last=self.first_blocks), layout


@BACKBONE.register_as(BACKBONE_NAME)
def build_eomt_backbone(cfg: Any, input_shape: ShapeSpec) -> EomtBackbone:
    """Build the vision transformer of MODEL.VIT. It ignores MODEL.BACKBONE.FREEZE_AT.

    Raises:
        ValueError: values that do not fit each other, with their keys.
    """
    first = first_blocks(cfg, f"MODEL.BACKBONE.NAME {BACKBONE_NAME}")
    return EomtBackbone(build_vit(cfg, input_shape), first_blocks=first)
