"""DETR with panoptic masks, trained in two stages: boxes, then masks of a detector that is frozen.

    images (B, 3, H, W)     normalized, and padded to the largest of the batch
    -> backbone             feature maps by name, at strides 4 to 32
    -> sem_seg_head         DetrHead: classes, boxes and masks, without attention to the padding
    -> criterion            weighted losses, in training
    -> detr_results         panoptic results and instances, in evaluation

Shapes: `B` images, `H, W` the padded image's sides, `h, w` those of an image before padding.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mask2former.modeling.detr.head import DetrHead
from mask2former.modeling.detr.options import ARCHITECTURE, CRITERION_NAME, HEAD, reads_masks
from mask2former.modeling.detr.postprocessing import detr_results, needed_queries
from mask2former.modeling.detr.predictions import DetrPredictions
from mask2former.modeling.layers.norm import freeze
from mask2former.modeling.loss.criterion import SetCriterion
from mask2former.modeling.mask_former import Inputs, MaskFormer, mask_former_parts
from mask2former.modeling.postprocessing.inference import InferenceOptions
from mask2former.modeling.predictions import ImagePrediction
from mask2former.utils.registry import META_ARCH


class Detr(MaskFormer):
    """DETR (ECCV 2020). Its network reads the sizes of images, its results follow its own rules."""

    def network(  # type: ignore[override]
        self, images: Tensor, sizes: Sequence[tuple[int, int]] | None = None
    ) -> DetrPredictions:
        """Predict from normalized images (B, 3, H, W) of `sizes` (h, w), padded at the bottom and right.

        By default there is no padding.
        """
        padded = (images.shape[2], images.shape[3])
        return self.sem_seg_head(self.backbone(images), padded, sizes or [padded] * len(images))

    def post_process(
        self, prediction: ImagePrediction, options: InferenceOptions | None = None, *, compact: bool = False
    ) -> dict[str, Any]:
        """Return "panoptic_seg" and "instances" of one image, by DETR's rules."""
        return detr_results(prediction, options or self.inference, compact=compact)

    @torch.no_grad()
    def predict_images(self, batched_inputs: Inputs) -> list[ImagePrediction]:
        """Return the prediction for each image, of those queries alone that results are made of."""
        predictions, sizes = self._predict_batch(batched_inputs)
        needed = partial(needed_queries, options=self.inference)
        with self._autocast():  # masks are computed here
            return predictions.of_images(sizes, self.inference.layer, needed)


@META_ARCH.register_as(ARCHITECTURE)
def build_detr(cfg: Any) -> Detr:
    """Build the model of a config; in the stage of masks, all but the mask head is frozen.

    Raises:
        ValueError: the head is another one, or an option is on that DETR does not have.
    """
    _refuse_other_results(cfg)
    parts = mask_former_parts(cfg)
    if not isinstance(parts["sem_seg_head"], DetrHead):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE {ARCHITECTURE} needs MODEL.SEM_SEG_HEAD.NAME {HEAD}, not "
            f"{cfg.MODEL.SEM_SEG_HEAD.NAME}"
        )
    if isinstance(parts["criterion"], SetCriterion):  # the default
        raise ValueError(
            f"MODEL.META_ARCHITECTURE {ARCHITECTURE} needs MODEL.MASK_FORMER.CRITERION_NAME "
            f"{CRITERION_NAME}, not {cfg.MODEL.MASK_FORMER.CRITERION_NAME}, which compares no boxes"
        )
    model = Detr(**parts)
    if reads_masks(cfg):
        freeze(model.backbone)
        parts["sem_seg_head"].freeze_detector()
    return model


def _refuse_other_results(cfg: Any) -> None:
    """Raise ValueError for keys of results that DETR does not make."""
    keys, test = "MODEL.MASK_FORMER.TEST", cfg.MODEL.MASK_FORMER.TEST
    refused = {
        f"{keys}.SEMANTIC_ON": (test.SEMANTIC_ON, "makes panoptic and instance output alone"),
        f"{keys}.OVERLAP_THRESHOLD": (test.OVERLAP_THRESHOLD, "does not compare overlaps"),
        "TEST.PROPOSALS": (cfg.TEST.PROPOSALS, "has one instance a query, with its class"),
    }
    for key, (value, what) in refused.items():
        if value:
            off = type(value)(0)
            raise ValueError(
                f"{key} is {value}, but MODEL.META_ARCHITECTURE {ARCHITECTURE} {what}; type {key} {off}"
            )
