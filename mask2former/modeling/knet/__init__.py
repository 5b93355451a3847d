"""K-Net (NeurIPS 2021), a comparator of the paper; importing this package registers its parts."""

from mask2former.modeling.knet.criterion import KNetCriterion
from mask2former.modeling.knet.head import KNetHead

__all__ = ["KNetCriterion", "KNetHead"]
