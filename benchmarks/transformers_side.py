"""transformers' Mask2Former for one of our configs: with random weights, or with those of our model.

Names and fields are translated by `mask2former.weights.hub`. Needs `pip install .[bench]`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

from mask2former.config import CfgNode, with_values
from mask2former.engine.build import construct_model
from mask2former.tools.convert import write_hub
from mask2former.weights.contents import Checkpoint
from mask2former.weights.hub.config import hub_config

try:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation
except ImportError as error:
    raise SystemExit("this benchmark compares with transformers: pip install '.[bench]'") from error


def transformers_model(cfg: CfgNode) -> nn.Module:
    """Build transformers' model for one of our configs, in evaluation mode, with random weights.

    Its batch norms train where ours are constants; `eval()` makes them constants too.

    Raises:
        ValueError: transformers has no such model.
    """
    with torch.device("meta"):
        names = construct_model(with_values(cfg, {"MODEL.DEVICE": "meta"}, "benchmark")).state_dict()
    config = Mask2FormerConfig(**hub_config(cfg, {}, names, {}))
    return Mask2FormerForUniversalSegmentation(config).eval()


def save_for_transformers(model: nn.Module, cfg: CfgNode, folder: Path) -> None:
    """Write our model and its config as a folder of transformers.

    Raises:
        ValueError: transformers has no such model.
    """
    write_hub(folder, Checkpoint("our model", {}), cfg, model.state_dict())


def with_weights_of(model: nn.Module, cfg: CfgNode) -> nn.Module:
    """Return transformers' model with the weights of ours, in evaluation mode.

    Raises:
        ValueError: transformers has no such model, or misses or does not know a tensor.
    """
    with tempfile.TemporaryDirectory() as folder:
        save_for_transformers(model, cfg, Path(folder))
        theirs, report = Mask2FormerForUniversalSegmentation.from_pretrained(folder, output_loading_info=True)
    if any(report.values()):
        raise ValueError(f"transformers does not find its tensors: {report}")
    return theirs.eval()
