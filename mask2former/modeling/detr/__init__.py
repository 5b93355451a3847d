"""DETR's panoptic model; importing this package registers its parts."""

from mask2former.modeling.detr.criterion import DetrCriterion
from mask2former.modeling.detr.model import Detr

__all__ = ["Detr", "DetrCriterion"]
