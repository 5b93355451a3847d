"""Transformer decoders; importing this registers them."""

from mask2former.modeling.transformer_decoder.masked import MultiScaleMaskedTransformerDecoder
from mask2former.modeling.transformer_decoder.standard import StandardTransformerDecoder

__all__ = ["MultiScaleMaskedTransformerDecoder", "StandardTransformerDecoder"]
