"""The model; importing this package registers all its parts."""

from mask2former.modeling import (
    backbone,
    detr,
    eomt,
    head,
    knet,
    loss,
    per_pixel,
    pixel_decoder,
    setr,
    transformer_decoder,
    upernet,
    video,
    vit,
)
from mask2former.modeling.mask_former import MaskFormer

__all__ = [
    "MaskFormer",
    "backbone",
    "detr",
    "eomt",
    "head",
    "knet",
    "loss",
    "per_pixel",
    "pixel_decoder",
    "setr",
    "transformer_decoder",
    "upernet",
    "video",
    "vit",
]
