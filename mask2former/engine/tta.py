"""Evaluation of semantic models over several sizes of an image, plain and mirrored: TEST.AUG.

Each view is the original image resized so that its shorter side is one of MIN_SIZES, the longer at most
MAX_SIZE; with FLIP its mirror image too. The scores of all views at the original size are averaged.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from fvcore.common.config import CfgNode
from torch import nn

from mask2former.modeling.mask_former import MaskFormer, build_inference_options

Predict = Callable[[Sequence[Mapping[str, Any]]], list[dict[str, Any]]]


def check_augmentation(cfg: CfgNode) -> None:
    """Refuse TEST.AUG where it means nothing.

    Raises:
        ValueError: TEST.AUG.ENABLED with panoptic or instance output, or without sizes.
    """
    augmentation = cfg.TEST.AUG
    if not augmentation.ENABLED:
        return
    others = [task for task in build_inference_options(cfg).tasks if task != "semantic"]
    if others:
        keys = ", ".join(f"MODEL.MASK_FORMER.TEST.{task.upper()}_ON" for task in others)
        raise ValueError(
            f"TEST.AUG.ENABLED is True, but an average over views is undefined for {' and '.join(others)} "
            "results: a query of one view corresponds to no query of another. Set TEST.AUG.ENABLED False; "
            f"or, for semantic results alone, {keys} False and MODEL.MASK_FORMER.TEST.SEMANTIC_ON True"
        )
    if not augmentation.MIN_SIZES or min(augmentation.MIN_SIZES) < 1 or augmentation.MAX_SIZE < 1:
        raise ValueError(
            "TEST.AUG.MIN_SIZES needs at least one size, and MAX_SIZE to be one, all in pixels: they are "
            f"{tuple(augmentation.MIN_SIZES)} and {augmentation.MAX_SIZE}"
        )


def compact_predict(cfg: CfgNode, model: MaskFormer) -> Predict:
    """What makes compact results of what the test mapper gives; with TEST.AUG, of several views.

    Raises:
        ValueError: as `check_augmentation`.
    """
    check_augmentation(cfg)
    if cfg.TEST.AUG.ENABLED:
        return partial(model.predict_views, mirror=cfg.TEST.AUG.FLIP, compact=True)
    return partial(model.predict, compact=True)


def evaluation_predict(cfg: CfgNode, model: nn.Module) -> Predict | None:
    """What makes results of a batch from the test loader: as `compact_predict`, all that our evaluators need.

    None for models of others, which are called as they are: evaluators take what comes.

    Raises:
        ValueError: as `check_augmentation`; or TEST.AUG.ENABLED with a model of others.
    """
    if isinstance(model, MaskFormer):
        return compact_predict(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        raise ValueError(f"TEST.AUG.ENABLED is True, but a {type(model).__name__} takes one view of an image")
    return None
