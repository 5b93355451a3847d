"""Test-time augmentation (TEST.AUG): semantic results averaged over several views of each image.

Each view is the original image resized so that its shorter side is one of MIN_SIZES, and the longer at most
MAX_SIZE; with FLIP its mirror image too. The scores of all views at the original size are averaged.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn

from mask2former.modeling.mask_former import MaskFormer
from mask2former.modeling.postprocessing.inference import build_inference_options
from mask2former.modeling.postprocessing.tta import post_process_views
from mask2former.modeling.predictions import ImagePrediction


def check_augmentation(cfg: CfgNode) -> None:
    """Refuse TEST.AUG where it is undefined.

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
            "TEST.AUG needs at least one size in MIN_SIZES, and MAX_SIZE, all positive numbers of pixels; "
            f"they are {tuple(augmentation.MIN_SIZES)} and {augmentation.MAX_SIZE}"
        )


class AugmentedModel:
    """A model whose results are averages over views of each image.

    Raises:
        ValueError: as `check_augmentation`; or the model is not a `MaskFormer`.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        check_augmentation(cfg)
        if not isinstance(model, MaskFormer):
            raise ValueError(
                f"TEST.AUG.ENABLED is True, but a {type(model).__name__} takes one view of an image"
            )
        self.model = model
        self.flips = (False, True) if cfg.TEST.AUG.FLIP else (False,)

    @torch.no_grad()
    def predict(
        self, batched_inputs: Sequence[Mapping[str, Any]], *, compact: bool = False
    ) -> list[dict[str, Any]]:
        """Return the averaged semantic result of each image, as `MaskFormer.predict` does for one view.

        The inputs have a list "views" of images in place of "image", and always "height" and "width".

        Raises:
            ValueError: an image does not fit; the message names the file.
        """
        return [self._predict(inputs, compact) for inputs in batched_inputs]

    def _predict(self, inputs: Mapping[str, Any], compact: bool) -> dict[str, Any]:
        views = list(product(inputs["views"], self.flips))

        def predictions() -> Iterator[ImagePrediction]:  # one by one, to save memory
            for image, flipped in views:
                view = {**inputs, "image": image.flip(-1) if flipped else image}
                (prediction,) = self.model.predict_images([view])
                yield prediction._replace(flipped=flipped)

        pixels = [image[0].numel() for image, _ in views]
        return post_process_views(predictions(), pixels, self.model.inference, compact=compact)
