"""Pixel decoders; importing this registers them."""

from mask2former.modeling.pixel_decoder.bifpn import BiFPNPixelDecoder
from mask2former.modeling.pixel_decoder.fapn import FaPNPixelDecoder
from mask2former.modeling.pixel_decoder.fpn import BasePixelDecoder, TransformerEncoderPixelDecoder
from mask2former.modeling.pixel_decoder.msdeformattn import MSDeformAttnPixelDecoder
from mask2former.modeling.pixel_decoder.semantic_fpn import SemanticFPNPixelDecoder
from mask2former.modeling.pixel_decoder.setr import SETRMLAPixelDecoder
from mask2former.modeling.pixel_decoder.upernet import UperNetPixelDecoder

__all__ = [
    "BasePixelDecoder",
    "BiFPNPixelDecoder",
    "FaPNPixelDecoder",
    "MSDeformAttnPixelDecoder",
    "SETRMLAPixelDecoder",
    "SemanticFPNPixelDecoder",
    "TransformerEncoderPixelDecoder",
    "UperNetPixelDecoder",
]
