"""SETR's head: classes of its pixel decoder's mask features and, for training, of each map that it sums up.

"Rethinking Semantic Segmentation from a Sequence-to-Sequence Perspective with Transformers" (CVPR 2021). The
auxiliary heads, without hidden layer, and the initial weights are mmsegmentation's.

Shapes: `B` images, `K` classes, `C` channels, `h, w` the sides of a map.
"""

from typing import Any

from torch import Tensor, nn

from mask2former.modeling.per_pixel import PerPixelBaselineHead, per_pixel_arguments
from mask2former.modeling.predictions import AuxiliaryPrediction, PixelPredictions
from mask2former.modeling.transformer_decoder.standard import refuse_decoder_options
from mask2former.modeling.upernet import init_classes
from mask2former.structures import ShapeSpec
from mask2former.utils.registry import SEM_SEG_HEADS


class SETRHead(PerPixelBaselineHead):
    """Pixel decoder, and 1x1 convolutions to classes: of its mask features and of each map of its memory.

    Args:
        pixel_decoder: one whose memory has maps of one stride.
        auxiliary: predict from the maps too in training.
        baseline: the other arguments of `PerPixelBaselineHead`.
    """

    def __init__(self, *, pixel_decoder: Any, auxiliary: bool, **baseline: Any) -> None:
        super().__init__(pixel_decoder=pixel_decoder, **baseline)
        init_classes(self.predictor)
        maps: list[ShapeSpec] = pixel_decoder.memory_shape if auxiliary else []
        self.auxiliary_heads = nn.ModuleList(
            init_classes(nn.Conv2d(shape.channels, self.predictor.out_channels, 1)) for shape in maps
        )
        self.auxiliary_stride = maps[0].stride if maps else 0

    def forward(self, features: dict[str, Tensor]) -> PixelPredictions:
        """Predict from the backbone's maps (B, C, h, w) by name."""
        mask_features, maps = self.pixel_decoder(features)
        logits = self.predictor(mask_features)
        if not self.auxiliary_heads or not self.training:
            return PixelPredictions([logits])
        auxiliary = [head(x) for head, x in zip(self.auxiliary_heads, maps, strict=True)]
        return PixelPredictions([logits], AuxiliaryPrediction(auxiliary, self.auxiliary_stride))


@SEM_SEG_HEADS.register_as("SETRHead")
def build_setr_head(cfg: Any, input_shape: dict[str, ShapeSpec]) -> SETRHead:
    """Build the head of a config for the backbone's maps `input_shape`; raise ValueError as its parts do."""
    refuse_decoder_options(cfg, "MODEL.SEM_SEG_HEAD.NAME", "SETRHead")
    auxiliary = cfg.MODEL.SEM_SEG_HEAD.AUXILIARY_WEIGHT > 0
    return SETRHead(auxiliary=auxiliary, **per_pixel_arguments(cfg, input_shape))
