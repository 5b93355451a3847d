"""From a config to a model on its device."""

import logging

from fvcore.common.config import CfgNode
from torch import nn

from mask2former.config.detectron2_keys import HOST_MODELS
from mask2former.engine.setup.dataset_facts import THING_IDS, with_dataset_facts
from mask2former.engine.setup.device import resolve_device
from mask2former.modeling import mask_former  # noqa: F401  (registers the model and all its parts)
from mask2former.utils.registry import META_ARCH, find_builder
from mask2former.utils.sharding import full_tensor, is_sharded

logger = logging.getLogger(__name__)


def build_model(cfg: CfgNode) -> nn.Module:
    """Build the model of a config, with fresh weights, on MODEL.DEVICE.

    Class count, ignore label and thing ids are the dataset's, also if `cfg` has other values.

    Raises:
        ValueError: MODEL.META_ARCHITECTURE or a part is not registered, or the device does not exist; or a
            typed value contradicts the dataset.
    """
    return construct_model(with_dataset_facts(cfg))


def construct_model(cfg: CfgNode) -> nn.Module:
    """Build the model of a resolved config; see `build_model`."""
    if cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON and not cfg.MODEL.MASK_FORMER.THING_IDS:
        logger.warning("%s is empty: panoptic results treat every class as stuff", THING_IDS)
    check_host(cfg)
    build = find_builder(META_ARCH, cfg.MODEL.META_ARCHITECTURE, "MODEL.META_ARCHITECTURE")
    return build(cfg).to(resolve_device(cfg.MODEL.DEVICE))


def check_host(cfg: CfgNode) -> None:
    """Raise ValueError if the model of a config is one of Detectron2, which has to train it."""
    name = cfg.MODEL.META_ARCHITECTURE
    if name in HOST_MODELS:
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {name}, a model of Detectron2: install Detectron2 and add "
            "--host detectron2 to `mask2former train` or `evaluate` (docs/detectron2.md)"
        )


def whole_model(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Return `model`, or an unsharded copy if it is sharded; every process must call this."""
    if not is_sharded(model):
        return model
    copy = construct_model(cfg)
    places = copy.state_dict()
    for name, tensor in model.state_dict().items():
        places[name].copy_(full_tensor(tensor))
    return copy
