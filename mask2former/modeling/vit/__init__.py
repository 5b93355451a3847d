"""Plain vision transformers: one class for BEiT, DINOv2 and DINOv3."""

from mask2former.modeling.vit.transformer import VisionTransformer

__all__ = ["VisionTransformer"]
