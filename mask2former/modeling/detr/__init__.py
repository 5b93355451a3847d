"""DETR's panoptic model; importing this package registers it."""

from mask2former.modeling.detr.model import Detr

__all__ = ["Detr"]
