"""Backbones; importing this package registers them."""

from mask2former.modeling.backbone.resnet import ResNet
from mask2former.modeling.backbone.swin import SwinTransformer

__all__ = ["ResNet", "SwinTransformer"]
