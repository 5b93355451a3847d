"""Masked attention over the cells of all frames of a clip, with one set of queries for the clip.

Section 2 of "Mask2Former for Video Instance Segmentation" (arXiv:2112.10764). The layers are those for
images; a level's cells are those of all frames, one frame after the other, and positions also encode the
frame.

Shapes: `B` clips, `T` frames of a clip, `C` channels, `D` channels of masks, `N` cells of a frame's level,
`h, w` its sides, `H, W` the sides of the padded frames.
"""

from typing import Any

from torch import Tensor

from mask2former.modeling.layers.position import frame_position
from mask2former.modeling.transformer_decoder.masked import (
    MultiScaleMaskedTransformerDecoder,
    masked_decoder_arguments,
)
from mask2former.modeling.transformer_decoder.memory_attention import MemoryCells
from mask2former.modeling.video.maps import merge_clips, split_clips
from mask2former.structures import ShapeSpec
from mask2former.utils.registry import TRANSFORMER_DECODER

ARCHITECTURE = "VideoMaskFormer"
DECODER_NAME = "VideoMultiScaleMaskedTransformerDecoder"


class VideoMultiScaleMaskedTransformerDecoder(MultiScaleMaskedTransformerDecoder):
    """The decoder of clips: memory (B, C, T, h, w), mask features (B, D, T, H/4, W/4).

    Without T it is the decoder for images, whose predictions are those of clips of one frame: the encoding of
    the only frame would add the same number to the logits of all cells, which changes no attention.
    """

    def _cells(self, index: int, memory: Tensor, mask_features: Tensor) -> MemoryCells:
        """Return the cells of a level's maps (B, C, T, h, w): keys and values (B, T N, C)."""
        if memory.ndim == 4:
            return super()._cells(index, memory, mask_features)
        num_clips, _, num_frames = memory.shape[:3]
        frames = super()._cells(index, merge_clips(memory), merge_clips(mask_features))
        keys, values = (of.unflatten(0, (num_clips, num_frames)) for of in (frames.keys, frames.values))
        keys = keys + frame_position(num_frames, keys.shape[-1], keys.device)[:, None]
        masks = frames.mask_features
        if masks is not None:
            masks = split_clips(masks.unsqueeze(-1), num_clips).flatten(2)
        return MemoryCells(keys.flatten(1, 2), values.flatten(1, 2), masks, frames.shapes * num_frames)


@TRANSFORMER_DECODER.register_as(DECODER_NAME)
def build_video_transformer_decoder(
    cfg: Any, input_shape: list[ShapeSpec]
) -> VideoMultiScaleMaskedTransformerDecoder:
    """Build the decoder of a config for a pixel decoder's memory `input_shape`.

    Raises:
        ValueError: as the decoder for images; or a model of images, or an attention that reads places there.
    """
    if cfg.MODEL.META_ARCHITECTURE != ARCHITECTURE:
        raise ValueError(
            f"MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME {DECODER_NAME} reads clips and needs "
            f"MODEL.META_ARCHITECTURE {ARCHITECTURE}, not {cfg.MODEL.META_ARCHITECTURE}"
        )
    if cfg.MODEL.MASK_FORMER.DECODER.ATTENTION == "smca":
        raise ValueError(
            "MODEL.MASK_FORMER.DECODER.ATTENTION smca directs queries to places in one image, which the "
            f"frames of TRANSFORMER_DECODER_NAME {DECODER_NAME} do not share; type masked"
        )
    return VideoMultiScaleMaskedTransformerDecoder(**masked_decoder_arguments(cfg, input_shape))
