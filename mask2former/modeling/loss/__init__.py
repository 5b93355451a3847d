"""Losses; importing this package registers them."""

from mask2former.modeling.loss.criterion import SetCriterion
from mask2former.modeling.loss.pixel_criterion import PixelCriterion

__all__ = ["PixelCriterion", "SetCriterion"]
