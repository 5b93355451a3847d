"""Pixel decoders; importing this registers them."""

from mask2former.modeling.pixel_decoder.msdeformattn import MSDeformAttnPixelDecoder

__all__ = ["MSDeformAttnPixelDecoder"]
