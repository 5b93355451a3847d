"""Losses; importing this package registers them."""

from mask2former.modeling.loss.criterion import SetCriterion

__all__ = ["SetCriterion"]
