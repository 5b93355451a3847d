"""The model as Detectron2 builds, fills and calls it.

Shapes: `K` classes, `H, W` an image's sides in pixels.
"""

import math
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor, nn

from mask2former.config import with_values
from mask2former.config.detectron2_keys import ALIASES, REFUSED, check_refused
from mask2former.config.yaml_files import flatten
from mask2former.data.mapper import CHANNEL_ORDER, build_test_mapper, record_image
from mask2former.detectron2_host.seam import inputs_from_detectron2, output_to_detectron2
from mask2former.engine.setup.dataset_facts import with_dataset_facts
from mask2former.engine.tta import AugmentedModel
from mask2former.modeling.mask_former import MaskFormer, mask_former_parts
from mask2former.utils.registry import BACKBONE
from mask2former.utils.sharding import unwrapped
from mask2former.weights.rename import translate

Inputs = Sequence[Mapping[str, Any]]


class HostMaskFormer(MaskFormer):
    """The same network, losses and results, taking and giving Detectron2's types.

    Targets may be masks of any of its kinds. State dicts with names from elsewhere or of older checkpoints
    are renamed as they are loaded, by the table that the standalone host uses.
    """

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self.register_load_state_dict_pre_hook(_rename)

    def forward(self, batched_inputs: Inputs) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Weighted losses by name in training, else Detectron2's output of each image."""
        if self.training:
            return self.losses([inputs_from_detectron2(inputs) for inputs in batched_inputs])
        return [output_to_detectron2(output) for output in self.predict(batched_inputs)]


def _rename(module: nn.Module, state: MutableMapping[str, Tensor], prefix: str, *_: Any) -> None:
    if prefix:
        return  # the model is a part of another one, whose names these are
    _, renamed = translate(dict(state))
    state.clear()
    state.update(renamed)


def build_host_mask_former(cfg: Any) -> HostMaskFormer:
    """The model of a config of Detectron2's, with what the dataset knows better taken from the dataset.

    Raises:
        ValueError: a key asks for what our model does not have, or a part is not registered.
    """
    values = flatten(cfg)
    if cfg.MODEL.BACKBONE.NAME in BACKBONE:
        for key in REFUSED:  # with other values Detectron2's ResNet would be another network than ours
            check_refused(key, values[key])
    switched_on = {ours: True for name, ours in ALIASES.items() if values.get(name)}
    parts = mask_former_parts(with_dataset_facts(with_values(cfg, switched_on, "an alias")))
    divisibility = _common_divisibility(parts["size_divisibility"], parts["backbone"])
    return HostMaskFormer(**{**parts, "size_divisibility": divisibility})


def _common_divisibility(asked: int, backbone: nn.Module) -> int:
    """What a batch's sides are multiples of: SIZE_DIVISIBILITY, if positive, and what the backbone needs."""
    needed = getattr(backbone, "size_divisibility", 0)  # Detectron2's tell; ours take images of any size
    return math.lcm(max(asked, 1), max(needed, 1))


class SemanticSegmentorWithTTA(nn.Module):
    """A model whose semantic scores are averaged over sizes and mirrored images: TEST.AUG.

    Args:
        cfg: says which sizes, and whether mirrored, in TEST.AUG.
        model: ours, possibly within DistributedDataParallel.

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
        """`sem_seg` (K, H, W) of each image, from its file, or from "image" where it names none."""
        inputs = [self._views(inputs) for inputs in batched_inputs]
        return self.augmented.predict(inputs)

    def _views(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        if "views" in inputs:
            return dict(inputs)
        if "file_name" in inputs:
            return {**inputs, **self.mapper.inputs(record_image(dict(inputs)))}
        image = inputs["image"].byte().permute(1, 2, 0).cpu().numpy()[..., self.order]
        return {**self.mapper.inputs(image), **inputs}  # "height" and "width" of the result, where it tells
