"""Plain vision transformers: BEiT, DINOv2 and DINOv3; importing this package registers them as backbones."""

from mask2former.modeling.vit.adapter import ViTAdapter
from mask2former.modeling.vit.backbone import SimplePyramid
from mask2former.modeling.vit.taps import TappedViT
from mask2former.modeling.vit.transformer import VisionTransformer

__all__ = ["SimplePyramid", "TappedViT", "ViTAdapter", "VisionTransformer"]
