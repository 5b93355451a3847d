"""DETR's loss: queries are matched to targets by class and box; classes, boxes and masks have terms.

Section 3.1 of "End-to-End Object Detection with Transformers" (ECCV 2020), with the released code's weights
and normalization. Masks have a loss in the second stage, and after the last layer alone. Everything is
computed in float32, also under autocast; without targets the terms of boxes and masks are exact zeros that
stay in the graph.

Shapes: `L` predictions, `B` images, `Q` queries, `O` outputs of the class head besides "no object", `N`
targets of an image (in batched tensors the largest number), `h, w` the sides of an unpadded image, `H, W`
those of the padded one.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mask2former.modeling.detr.boxes import boxes_of_masks, corners_of, generalized_iou
from mask2former.modeling.detr.options import (
    CRITERION_NAME,
    check_architecture,
    class_outputs,
    reads_masks,
)
from mask2former.modeling.detr.predictions import DetrPredictions
from mask2former.modeling.loss.criterion import check_word, class_loss, name_layers
from mask2former.modeling.loss.dense import enlarged_mask_terms
from mask2former.modeling.loss.mask_terms import MASK_LOSSES
from mask2former.modeling.loss.matcher import UNMATCHED, assign, class_costs
from mask2former.structures import Instances
from mask2former.utils.registry import CRITERION


class DetrWeights(NamedTuple):
    """Weights of the terms; those of class and box are also in the matching cost."""

    classes: float
    l1: float
    giou: float
    mask: float
    dice: float


class DetrCriterion(nn.Module):
    """Loss that matches queries to targets by class and box.

    Args:
        num_outputs: O.
        no_object_weight: weight of "no object" in the cross-entropy.
        mask_loss: "cross_entropy" or "focal", beside dice.
        with_masks: predictions have masks, and masks a loss.
        deep_supervision: False: only the last prediction has a loss.

    Raises:
        ValueError: `mask_loss` is unknown.
    """

    empty_weight: Tensor

    def __init__(
        self,
        *,
        num_outputs: int,
        weights: DetrWeights,
        no_object_weight: float,
        mask_loss: str,
        with_masks: bool,
        deep_supervision: bool = True,
    ) -> None:
        super().__init__()
        check_word("MASK_LOSS", mask_loss, tuple(MASK_LOSSES))
        self.weights, self.mask_loss = weights, mask_loss
        self.with_masks, self.deep_supervision = with_masks, deep_supervision
        empty_weight = torch.ones(num_outputs + 1)
        empty_weight[-1] = no_object_weight
        self.register_buffer("empty_weight", empty_weight)

    def forward(
        self,
        predictions: DetrPredictions,
        targets: list[Instances],
        image_size: tuple[int, int],
        seeds: list[int] | None = None,
    ) -> dict[str, Tensor]:
        """Return weighted `loss_ce`, `loss_bbox`, `loss_giou`, and `loss_mask` and `loss_dice` of masks.

        `..._0` on are earlier predictions'.

        Args:
            targets: `gt_classes` (N,) int64 and `gt_masks` (N, h, w) bool of each image; h, w unpadded. Those
                without a pixel are left out: they have no box.
            image_size: (H, W), padded.
            seeds: not used; it draws nothing.
        """
        targets = [target[target.gt_masks.flatten(1).any(1)] for target in targets]
        labels = [predictions.outputs[target.gt_classes] for target in targets]
        boxes = pad_sequence([boxes_of_masks(target.gt_masks) for target in targets], batch_first=True)
        first = 0 if self.deep_supervision else -1
        with torch.autocast(boxes.device.type, enabled=False):
            class_logits = predictions.class_logits[first:].float()
            found = predictions.boxes[first:].float()
            queries = self._match(class_logits, found, labels, boxes)
            ce, total = class_loss(class_logits, queries, labels, self.empty_weight)
            l1, giou = box_losses(found, queries, boxes)
            terms = {
                "loss_ce": self.weights.classes * ce,
                "loss_bbox": self.weights.l1 * l1 / total,
                "loss_giou": self.weights.giou * giou / total,
            }
            losses = name_layers(terms)
        if self.with_masks:
            mask, dice = self._mask_losses(predictions, queries[-1], targets, image_size)
            losses["loss_mask"] = self.weights.mask * mask / total
            losses["loss_dice"] = self.weights.dice * dice / total
        return losses

    @torch.no_grad()
    def _match(self, class_logits: Tensor, found: Tensor, labels: list[Tensor], boxes: Tensor) -> Tensor:
        """Return the query of each target, (L, B, N) or UNMATCHED; boxes are (L, B, Q, 4) and (B, N, 4)."""
        pairs = found[:, :, :, None], boxes[:, None]
        costs = self.weights.classes * class_costs(class_logits, pad_sequence(labels, batch_first=True))
        costs += self.weights.l1 * (pairs[0] - pairs[1]).abs().sum(-1)
        costs -= self.weights.giou * generalized_iou(*map(corners_of, pairs))
        return assign(costs, [len(label) for label in labels])

    def _mask_losses(
        self,
        predictions: DetrPredictions,
        queries: Tensor,
        targets: list[Instances],
        image_size: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """Return the mask loss and dice of the last prediction's `queries` (B, N), summed over targets."""
        sums = []
        for image, target in enumerate(targets):
            query, masks = queries[image, : len(target)], target.gt_masks
            if not len(target):  # some query, which is not counted, keeps the mask head in the graph
                query, masks = query.new_full((1,), UNMATCHED), masks.new_zeros(1, *masks.shape[1:])
            logits = predictions.masks(image, query.clamp(min=0))
            with torch.autocast(logits.device.type, enabled=False):
                terms = enlarged_mask_terms(logits, masks, image_size, self.mask_loss)
            sums.append([term.where(query != UNMATCHED, 0).sum() for term in terms])
        mask, dice = (torch.stack(terms).sum() for terms in zip(*sums, strict=True))
        return mask, dice


def box_losses(found: Tensor, queries: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the L1 and generalized-IoU losses (L,), summed over targets.

    `found` are the boxes (L, B, Q, 4) of all queries, `queries` (L, B, N) those that match `boxes` (B, N, 4).
    """
    matched = found.gather(2, queries.clamp(min=0)[..., None].expand(-1, -1, -1, 4))
    l1 = (matched - boxes).abs().sum(-1)
    giou = 1 - generalized_iou(corners_of(matched), corners_of(boxes))
    counted = queries != UNMATCHED
    return l1.where(counted, 0).sum((1, 2)), giou.where(counted, 0).sum((1, 2))


@CRITERION.register_as(CRITERION_NAME)
def build_detr_criterion(cfg: Any) -> DetrCriterion:
    """Build the criterion of a config; raise ValueError if the model is another one, or as its head's."""
    check_architecture(cfg, f"MODEL.MASK_FORMER.CRITERION_NAME {CRITERION_NAME}")
    loss = cfg.MODEL.MASK_FORMER
    return DetrCriterion(
        num_outputs=class_outputs(cfg)[1],
        weights=DetrWeights(
            classes=loss.CLASS_WEIGHT,
            l1=cfg.MODEL.DETR.L1_WEIGHT,
            giou=cfg.MODEL.DETR.GIOU_WEIGHT,
            mask=loss.MASK_WEIGHT,
            dice=loss.DICE_WEIGHT,
        ),
        no_object_weight=loss.NO_OBJECT_WEIGHT,
        mask_loss=loss.MASK_LOSS,
        with_masks=reads_masks(cfg),
        deep_supervision=loss.DEEP_SUPERVISION,
    )
