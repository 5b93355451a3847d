"""The segmentation head: a pixel decoder followed by a transformer decoder.

Shapes: `B` images, `C` channels, `h, w` the sides of a map.
"""

from typing import Any

from torch import Tensor, nn

from mask2former.modeling.predictions import Predictions
from mask2former.structures import ShapeSpec
from mask2former.utils.registry import SEM_SEG_HEADS, TRANSFORMER_DECODER, find_builder


class MaskFormerHead(nn.Module):
    """Pixel decoder, and a transformer decoder, `predictor`, of its mask features and memory."""

    def __init__(self, *, pixel_decoder: nn.Module, predictor: nn.Module) -> None:
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor

    def forward(self, features: dict[str, Tensor]) -> Predictions:
        """Predict from the backbone's maps (B, C, h, w) by name."""
        mask_features, memory, *_ = self.pixel_decoder(features)
        return self.predictor(memory, mask_features)


@SEM_SEG_HEADS.register_as("MaskFormerHead")
def build_mask_former_head(cfg: Any, input_shape: dict[str, ShapeSpec]) -> MaskFormerHead:
    """Build the head with the two decoders that the config names, for the backbone's maps `input_shape`.

    Raises:
        ValueError: a decoder is not registered, or the backbone has no such map.
    """
    head = cfg.MODEL.SEM_SEG_HEAD
    missing = [name for name in head.IN_FEATURES if name not in input_shape]
    if missing:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.IN_FEATURES has {missing}, but the backbone has {list(input_shape)}"
        )
    build_pixel_decoder = find_builder(
        SEM_SEG_HEADS, head.PIXEL_DECODER_NAME, "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME"
    )
    build_predictor = find_builder(
        TRANSFORMER_DECODER,
        cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME,
        "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME",
    )
    pixel_decoder = build_pixel_decoder(cfg, {name: input_shape[name] for name in head.IN_FEATURES})
    return MaskFormerHead(
        pixel_decoder=pixel_decoder, predictor=build_predictor(cfg, pixel_decoder.memory_shape)
    )
