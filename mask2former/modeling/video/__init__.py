"""Mask2Former for video instance segmentation; importing this package registers its parts."""

from mask2former.modeling.video.criterion import VideoSetCriterion
from mask2former.modeling.video.decoder import VideoMultiScaleMaskedTransformerDecoder
from mask2former.modeling.video.model import VideoMaskFormer

__all__ = ["VideoMaskFormer", "VideoMultiScaleMaskedTransformerDecoder", "VideoSetCriterion"]
