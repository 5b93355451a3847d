"""Mask2Former: semantic, instance and panoptic segmentation by masked attention.

The public names load what they need when they are first used, so that a part (the config, a metric) can be
imported without the rest.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mask2former.version import __version__

if TYPE_CHECKING:
    from mask2former.config import add_maskformer2_config, get_cfg, load_config
    from mask2former.engine.build import build_model
    from mask2former.predictor import Predictor

__all__ = ["Predictor", "__version__", "add_maskformer2_config", "build_model", "get_cfg", "load_config"]

_HOMES = {
    "Predictor": "mask2former.predictor",
    "add_maskformer2_config": "mask2former.config",
    "build_model": "mask2former.engine.build",
    "get_cfg": "mask2former.config",
    "load_config": "mask2former.config",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mask2former' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
