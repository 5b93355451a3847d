"""MaskFormer's baselines, which give each pixel a class: heads, and the meta-architecture around them.

They have no queries that compete for segments, so they make semantic output alone (MaskFormer §4.1).

Shapes: `B` images, `K` classes, `C` channels, `h, w` the sides of a map, `H, W` those of the padded image.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from mask2former.modeling.head import MaskFormerHead, build_pixel_decoder, memory_shape
from mask2former.modeling.loss.pixel_criterion import build_pixel_criterion
from mask2former.modeling.mask_former import MaskFormer, mask_former_parts
from mask2former.modeling.predictions import PixelPredictions
from mask2former.modeling.transformer_decoder.standard import (
    StandardTransformerDecoder,
    refuse_decoder_options,
    standard_arguments,
)
from mask2former.structures import ShapeSpec
from mask2former.utils.registry import META_ARCH, SEM_SEG_HEADS


class PerPixelBaselineHead(nn.Module):
    """Pixel decoder, and a 1x1 convolution of its mask features to classes."""

    per_pixel = True

    def __init__(self, *, pixel_decoder: nn.Module, mask_dim: int, num_classes: int) -> None:
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = nn.Conv2d(mask_dim, num_classes, 1)
        nn.init.kaiming_normal_(self.predictor.weight, mode="fan_out", nonlinearity="relu")
        assert self.predictor.bias is not None
        nn.init.zeros_(self.predictor.bias)

    def forward(self, features: dict[str, Tensor]) -> PixelPredictions:
        """Predict from the backbone's maps (B, C, h, w) by name."""
        return PixelPredictions([self.predictor(self.pixel_decoder(features)[0])])


class PerPixelBaselinePlusHead(MaskFormerHead):
    """MaskFormer's head with one query a class, whose mask logits are the class's logits."""

    per_pixel = True

    def forward(self, features: dict[str, Tensor]) -> PixelPredictions:  # type: ignore[override]
        """Predict from the backbone's maps (B, C, h, w) by name; in evaluation after the last layer."""
        predictions = super().forward(features)
        layers = range(len(predictions.layers)) if self.training else [-1]
        return PixelPredictions([predictions.mask_logits(layer) for layer in layers])


@SEM_SEG_HEADS.register_as("PerPixelBaselineHead")
def build_per_pixel_baseline_head(cfg: Any, input_shape: dict[str, ShapeSpec]) -> PerPixelBaselineHead:
    """Build the head of a config for the backbone's maps `input_shape`; raise ValueError as its parts do."""
    refuse_decoder_options(cfg, "MODEL.SEM_SEG_HEAD.NAME", "PerPixelBaselineHead")
    return PerPixelBaselineHead(**per_pixel_arguments(cfg, input_shape))


def per_pixel_arguments(cfg: Any, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
    """Return the arguments of `PerPixelBaselineHead` by a config; raise ValueError as the decoder does."""
    return {
        "pixel_decoder": build_pixel_decoder(cfg, input_shape),
        "mask_dim": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
        "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
    }


@SEM_SEG_HEADS.register_as("PerPixelBaselinePlusHead")
def build_per_pixel_baseline_plus_head(
    cfg: Any, input_shape: dict[str, ShapeSpec]
) -> PerPixelBaselinePlusHead:
    """Build the head of a config for the backbone's maps `input_shape`; raise ValueError as its parts do."""
    refuse_decoder_options(cfg, "MODEL.SEM_SEG_HEAD.NAME", "PerPixelBaselinePlusHead")
    pixel_decoder = build_pixel_decoder(cfg, input_shape)
    arguments = standard_arguments(cfg, memory_shape(cfg, pixel_decoder, input_shape))
    arguments |= {"num_classes": None, "num_queries": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES}
    return PerPixelBaselinePlusHead(
        pixel_decoder=pixel_decoder,
        predictor=StandardTransformerDecoder(**arguments),
        in_feature=cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE,
    )


@META_ARCH.register_as("SemanticSegmentor")
def build_semantic_segmentor(cfg: Any) -> MaskFormer:
    """Build a model with a per-pixel head; images are padded to the largest of a batch.

    Its criterion is `PixelCriterion` unless the config names one of its own.

    Raises:
        ValueError: the head predicts masks, or an output other than the semantic one is on.
    """
    model = cfg.MODEL
    for task in ("INSTANCE_ON", "PANOPTIC_ON"):
        if model.MASK_FORMER.TEST[task]:
            raise ValueError(
                f"MODEL.MASK_FORMER.TEST.{task} is True, but MODEL.META_ARCHITECTURE SemanticSegmentor "
                "makes semantic output alone"
            )
    parts = mask_former_parts(cfg)
    if not getattr(parts["sem_seg_head"], "per_pixel", False):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE SemanticSegmentor needs a head that gives each pixel a class, not "
            f"MODEL.SEM_SEG_HEAD.NAME {cfg.MODEL.SEM_SEG_HEAD.NAME}, which needs MaskFormer"
        )
    parts |= {"inference": replace(parts["inference"], resize_first=True), "size_divisibility": 0}
    if model.MASK_FORMER.CRITERION_NAME == "SetCriterion":  # the default, which is for masks
        parts["criterion"] = build_pixel_criterion(cfg)
    return MaskFormer(**parts)
