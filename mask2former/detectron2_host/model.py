"""The model with Detectron2's types, builder and checkpointer.

Shapes: `K` classes, `H, W` an image's sides in pixels.
"""

import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor, nn

from mask2former.config import with_values
from mask2former.config.detectron2_keys import ALIASES, REFUSED, check_refused
from mask2former.config.yaml_files import flatten
from mask2former.data.mapper import CHANNEL_ORDER, build_test_mapper, record_image
from mask2former.detectron2_host.type_conversion import inputs_from_detectron2, output_to_detectron2
from mask2former.engine.setup.dataset_facts import with_dataset_facts
from mask2former.engine.tta import AugmentedModel
from mask2former.modeling.eomt.model import Eomt, eomt_parts
from mask2former.modeling.eomt.options import ARCHITECTURE as EOMT
from mask2former.modeling.mask_former import MaskFormer, mask_former_parts
from mask2former.utils.registry import BACKBONE
from mask2former.utils.sharding import unwrapped
from mask2former.weights.rename import translate

Inputs = Sequence[Mapping[str, Any]]


class HostMaskFormer(MaskFormer):
    """The same network, losses and results, with Detectron2's types as input and output.

    Loading a state dict of an older release or of another project renames its entries, as on the standalone
    host.
    """

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self.register_load_state_dict_pre_hook(_rename)

    def forward(self, batched_inputs: Inputs) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Return weighted losses by name in training, else Detectron2's output for each image."""
        if self.training:
            return self.losses([inputs_from_detectron2(inputs) for inputs in batched_inputs])
        return [output_to_detectron2(output) for output in self.predict(batched_inputs)]


class HostEomt(HostMaskFormer, Eomt):
    """EoMT, likewise."""


# MODEL.META_ARCHITECTURE -> class, and what builds its arguments from a config
HOST_CLASSES: dict[str, tuple[type[HostMaskFormer], Callable[[Any], dict[str, Any]]]] = {
    "MaskFormer": (HostMaskFormer, mask_former_parts),
    EOMT: (HostEomt, eomt_parts),
}


def _rename(module: nn.Module, state: MutableMapping[str, Tensor], prefix: str, *_: Any) -> None:
    if prefix:
        return  # the model is a part of another model, which has its own names
    _, renamed = translate(dict(state))
    state.clear()
    state.update(renamed)


def build_host_model(cfg: Any) -> HostMaskFormer:
    """Build our model of a config of Detectron2; the dataset's facts replace values of the config.

    Raises:
        ValueError: a key has a value that our model does not support, or a part is not registered.
    """
    values = flatten(cfg)
    if cfg.MODEL.BACKBONE.NAME in BACKBONE:
        for key in REFUSED:  # with other values Detectron2's ResNet is a different network from ours
            check_refused(key, values[key])
    switched_on = {ours: True for name, ours in ALIASES.items() if values.get(name)}
    model, build_parts = HOST_CLASSES[cfg.MODEL.META_ARCHITECTURE]
    parts = build_parts(with_dataset_facts(with_values(cfg, switched_on, "an alias")))
    needed = getattr(parts["backbone"], "size_divisibility", 0)  # only Detectron2's backbones have one
    parts["size_divisibility"] = math.lcm(max(parts["size_divisibility"], 1), max(needed, 1))
    return model(**parts)


class SemanticSegmentorWithTTA(nn.Module):
    """A model with test-time augmentation: semantic scores averaged over sizes and flips.

    Args:
        cfg: its TEST.AUG section has the sizes and the flip.
        model: our model, also within DistributedDataParallel.

    Raises:
        ValueError: panoptic or instance output is on, or there are no sizes.
    """

    def __init__(self, cfg: Any, model: nn.Module) -> None:
        super().__init__()
        cfg = with_values(cfg, {"TEST.AUG.ENABLED": True}, type(self).__name__)
        self.model = unwrapped(model)
        self.augmented = AugmentedModel(cfg, self.model)
        self.order = CHANNEL_ORDER[cfg.INPUT.FORMAT]
        self.mapper = build_test_mapper(cfg)

    def forward(self, batched_inputs: Inputs) -> list[dict[str, Any]]:
        """Return `sem_seg` (K, H, W) of each image, read from "file_name" or, without that, from "image"."""
        return self.augmented.predict([self._views(inputs) for inputs in batched_inputs])

    def _views(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        if "views" in inputs:
            return dict(inputs)
        if "file_name" in inputs:
            return {**inputs, **self.mapper.inputs(record_image(dict(inputs)))}
        image = inputs["image"].byte().permute(1, 2, 0).cpu().numpy()[..., self.order]
        return {**self.mapper.inputs(image), **inputs}  # `inputs` may hold the result's "height" and "width"
