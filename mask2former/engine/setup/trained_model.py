"""A trained model that the user names: its config and checkpoint, or what to type instead."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from os import PathLike, fspath
from pathlib import PurePath
from typing import Any, cast

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mask2former.config import config_from_text, load_config, with_values
from mask2former.engine.build import build_model
from mask2former.engine.setup.dataset_facts import THING_IDS
from mask2former.engine.setup.known_classes import lacks_things, with_known_classes
from mask2former.engine.setup.precision import apply_precision, images_for_precision
from mask2former.modeling.mask_former import MaskFormer
from mask2former.utils.storage import is_remote, to_path
from mask2former.weights.load import Checkpoint, WeightsError, load_weights, read_checkpoint
from mask2former.weights.model_zoo import (
    backbone_origin,
    find_model,
    model_of_config,
    near_names,
    published_name,
)

logger = logging.getLogger(__name__)

UNKNOWN_THINGS = (
    "its labels are of no known dataset, so that it predicts semantic maps alone; to say which classes are "
    f"things, convert it: mask2former convert FOLDER model.pth {THING_IDS} '[0, 1]' "
    "MODEL.MASK_FORMER.TEST.PANOPTIC_ON True"
)
# What draws initial weights; of `trunc_normal_`, `erfinv_` is the slow step
DRAWING = {
    *(Tensor.erfinv_, Tensor.normal_, Tensor.uniform_),
    *(nn.init.kaiming_normal_, nn.init.kaiming_uniform_, nn.init.normal_, nn.init.uniform_),
}
BACKBONE_FOLDER = "ImageNetPretrained"  # where Detectron2 keeps backbones


class UntrainedModelError(ValueError):
    """A model without trained weights, whose predictions would be noise."""


def zoo_model(name: str, opts: Sequence[Any] = ()) -> tuple[CfgNode, Checkpoint]:
    """Return the config of a published model, with `opts` (KEY VALUE ...) merged, and its downloaded weights.

    Raises:
        ValueError: no published model has that name, or a key or value is wrong.
        WeightsError: the weights cannot be downloaded or read.
    """
    model = find_model(name)
    cfg = load_config(model.config, ["MODEL.WEIGHTS", model.weights, *opts])
    try:
        return cfg, read_checkpoint(cfg.MODEL.WEIGHTS)
    except WeightsError as error:
        raise WeightsError(name, str(error)) from error


def stored_config(checkpoint: Checkpoint, opts: Sequence[Any] = ()) -> CfgNode:
    """Return the config that a checkpoint of this project or a folder of transformers holds.

    MODEL.WEIGHTS is set to its file. MODEL.DEVICE becomes "auto", and DATASETS empty, because the datasets
    may not be on this machine. `opts`, KEY VALUE pairs, win over all of this.

    Raises:
        WeightsError: it holds no config.
    """
    if checkpoint.config is None:
        advice = "give a config whose MODEL.WEIGHTS is this file: Predictor(load_config(...))"
        raise WeightsError(checkpoint.file, f"holds weights but no config; {advice}")
    no_data: dict[str, Any] = {"DATASETS.TRAIN": (), "DATASETS.TEST": ()}
    values = {"MODEL.WEIGHTS": checkpoint.file, "MODEL.DEVICE": "auto", **no_data}
    checkpoint = with_known_classes(checkpoint)
    assert checkpoint.config is not None
    cfg = config_from_text(checkpoint.config, checkpoint.file, opts)
    if lacks_things(checkpoint) and not cfg.is_typed(THING_IDS):
        logger.warning("%s: %s", checkpoint.file, UNKNOWN_THINGS)
    values = {key: value for key, value in values.items() if not cfg.is_typed(key)}
    return with_values(cfg, values, checkpoint.file)


def require_checkpoint(source: Any) -> str:
    """Return the path or URL of a checkpoint.

    Raises:
        TypeError: it is neither a string nor a path.
        WeightsError: it names a config, or no file; the message has the call that takes such a name.
    """
    if not isinstance(source, str | PathLike):
        kind = type(source).__name__
        raise TypeError(
            f"Predictor takes a checkpoint's path or URL, or a config, not a value of type {kind}"
        )
    name = fspath(source)
    if not name:
        raise WeightsError("''", 'is no path; type Predictor("model_final.pth") or Predictor.from_zoo(NAME)')
    if PurePath(name).suffix.lower() in (".yaml", ".yml"):
        call = f'Predictor(load_config("{name}", ["MODEL.WEIGHTS", "model_final.pth"]))'
        model = model_of_config(name)
        zoo = f', or Predictor.from_zoo("{model.name}") for its published weights' if model else ""
        raise WeightsError(name, f"is a config, not a checkpoint; type {call}{zoo}")
    if PurePath(name).suffix or (not is_remote(name) and to_path(name).exists()):
        return name
    if published := published_name(name):
        raise WeightsError(name, f'is a published model; type Predictor.from_zoo("{published}")')
    if not is_remote(name):
        near = "".join(f'; do you mean Predictor.from_zoo("{model}")?' for model in near_names(name)[:1])
        raise WeightsError(name, f"no such file, and no published model{near} (`mask2former zoo` lists all)")
    return name


def require_trained_weights(weights: str) -> None:
    """Check that the value of MODEL.WEIGHTS can be a trained model, by its name alone.

    Raises:
        UntrainedModelError: it is empty or a backbone trained on ImageNet.
    """
    noise = "its predictions would be noise"
    if not weights:
        raise UntrainedModelError(f"MODEL.WEIGHTS is empty: the model is untrained, {noise}")
    if BACKBONE_FOLDER in weights or backbone_origin(PurePath(weights).name):
        raise UntrainedModelError(
            f"MODEL.WEIGHTS is {weights}, a backbone trained on ImageNet: the head is untrained, {noise}"
        )


def trained_model(
    cfg: CfgNode,
    checkpoint: Checkpoint,
    precision: str = "fp32",
    calibrate: str | PathLike[str] | None = None,
) -> MaskFormer:
    """Return the model of a config with the weights of a checkpoint, ready to predict.

    Args:
        precision: "fp32", "bf16" or "int8".
        calibrate: for "int8", a folder of images on which ranges of activations are measured.

    Raises:
        UntrainedModelError: the checkpoint does not fill the segmentation head.
        WeightsError: its weights do not fit.
        ValueError: the config, `precision` or `calibrate` is wrong; or int8 is not to be had here.
        ImageError: a file in the folder is not an image.
    """
    images = images_for_precision(precision, calibrate)
    with torch.random.fork_rng(devices=[]), _NoRandomValues():
        model = cast(MaskFormer, build_model(cfg).eval())
    report = load_weights(model, checkpoint, strict=cfg.MODEL.WEIGHTS_STRICT)
    if not report.has_trained_head:
        raise UntrainedModelError(f"the segmentation head is not trained: {report.summary()}")
    if report.problems or report.share_loaded < 1:  # the file lacks weights, which need initial values
        model = cast(MaskFormer, build_model(cfg).eval())
        load_weights(model, checkpoint, strict=False)
    apply_precision(cfg, model, precision, images)
    return model


class _NoRandomValues(TorchFunctionMode):
    """Set initial weights to zero instead of drawing them, which takes most of the time of building.

    They cannot stay undefined: torch draws truncated distributions again until all values are within limits.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch, or zero the tensor that the function would fill."""
        kwargs = kwargs or {}
        if func in DRAWING:
            with torch.no_grad():
                return (args[0] if args else kwargs["tensor"]).zero_()
        return func(*args, **kwargs)
