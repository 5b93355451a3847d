"""EoMT, a plain vision transformer that segments by itself; importing this package registers its parts."""

from mask2former.modeling.eomt.model import Eomt

__all__ = ["Eomt"]
