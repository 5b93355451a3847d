"""Transformer decoders; importing this registers them."""

from mask2former.modeling.transformer_decoder.masked import MultiScaleMaskedTransformerDecoder

__all__ = ["MultiScaleMaskedTransformerDecoder"]
