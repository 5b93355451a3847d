"""UperNet's head: classes of its pixel decoder's mask features and, for training, of one map of the backbone.

UperNet is "Unified Perceptual Parsing for Scene Understanding"; the head, its auxiliary head and their
initial weights are mmsegmentation's, with which the authors of Swin trained it.

Shapes: `B` images, `K` classes, `C` channels, `h, w` the sides of a map.
"""

from typing import Any

from torch import Tensor, nn

from mask2former.modeling.per_pixel import PerPixelBaselineHead, per_pixel_arguments
from mask2former.modeling.pixel_decoder.fpn import coarsest_first
from mask2former.modeling.pixel_decoder.upernet import relu_conv
from mask2former.modeling.predictions import AuxiliaryPrediction, PixelPredictions
from mask2former.modeling.transformer_decoder.standard import refuse_decoder_options
from mask2former.structures import ShapeSpec
from mask2former.utils.registry import SEM_SEG_HEADS

AUXILIARY_WIDTH = 256


class FCNHead(nn.Module):
    """Classes of one map: a 3x3 convolution, dropout, and a 1x1 convolution."""

    def __init__(self, *, in_channels: int, width: int, num_classes: int, norm: str, dropout: float) -> None:
        super().__init__()
        self.convs = nn.Sequential(relu_conv(in_channels, width, 3, norm))
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = init_classes(nn.Conv2d(width, num_classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K, h, w) for a map (B, C, h, w)."""
        return self.conv_seg(self.dropout(self.convs(x)))


class UperNetHead(PerPixelBaselineHead):
    """Pixel decoder, dropout, and a 1x1 convolution to classes.

    Args:
        dropout: rate of whole channels.
        auxiliary_head: predicts too in training, from the backbone's map `auxiliary_feature`.
        auxiliary_stride: of that map.
        baseline: arguments of `PerPixelBaselineHead`.
    """

    def __init__(
        self,
        *,
        dropout: float,
        auxiliary_head: nn.Module | None,
        auxiliary_feature: str,
        auxiliary_stride: int,
        **baseline: Any,
    ) -> None:
        super().__init__(**baseline)
        init_classes(self.predictor)
        self.dropout = nn.Dropout2d(dropout)
        self.auxiliary_head = auxiliary_head
        self.auxiliary_feature = auxiliary_feature
        self.auxiliary_stride = auxiliary_stride

    def forward(self, features: dict[str, Tensor]) -> PixelPredictions:
        """Predict from the backbone's maps (B, C, h, w) by name."""
        logits = self.predictor(self.dropout(self.pixel_decoder(features)[0]))
        if self.auxiliary_head is None or not self.training:
            return PixelPredictions([logits])
        auxiliary = self.auxiliary_head(features[self.auxiliary_feature])
        return PixelPredictions([logits], AuxiliaryPrediction([auxiliary], self.auxiliary_stride))


def init_classes(convolution: nn.Conv2d) -> nn.Conv2d:
    """Initialize and return a convolution to classes as mmsegmentation does."""
    nn.init.normal_(convolution.weight, std=0.01)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return convolution


@SEM_SEG_HEADS.register_as("UperNetHead")
def build_upernet_head(cfg: Any, input_shape: dict[str, ShapeSpec]) -> UperNetHead:
    """Build the head of a config for the backbone's maps `input_shape`; raise ValueError as its parts do.

    The auxiliary head reads the second coarsest of the maps, at stride 16.
    """
    refuse_decoder_options(cfg, "MODEL.SEM_SEG_HEAD.NAME", "UperNetHead")
    head, dropout = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER.DROPOUT
    baseline = per_pixel_arguments(cfg, input_shape)
    feature = coarsest_first({name: input_shape[name] for name in head.IN_FEATURES})[1]
    auxiliary_head = FCNHead(
        in_channels=input_shape[feature].channels,
        width=AUXILIARY_WIDTH,
        num_classes=head.NUM_CLASSES,
        norm=head.NORM,
        dropout=dropout,
    )
    return UperNetHead(
        **baseline,
        dropout=dropout,
        auxiliary_head=auxiliary_head if head.AUXILIARY_WEIGHT else None,
        auxiliary_feature=feature,
        auxiliary_stride=input_shape[feature].stride,
    )
