"""The loss of per-pixel models: cross-entropy of each pixel's class (MaskFormer §4.1).

Shapes: `B` images, `K` classes, `N` targets of an image, `H, W` the padded image's sides, `h, w` those of an
image before padding.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mask2former.modeling.loss.criterion import name_layers
from mask2former.modeling.predictions import PIXEL_STRIDE, PixelPredictions, enlarge_class_logits
from mask2former.structures import Instances
from mask2former.utils.comm import all_reduce_sum, world_size
from mask2former.utils.registry import CRITERION

IGNORED = -100


class PixelCriterion(nn.Module):
    """Cross-entropy at full size, averaged over all pixels that have a class, for each prediction.

    Args:
        weight: of the loss.
        auxiliary_weight: of the loss of an auxiliary prediction, relative to `weight`.
        deep_supervision: False: of the layers' predictions only the last has a loss.
    """

    def __init__(
        self, *, weight: float, auxiliary_weight: float = 0.0, deep_supervision: bool = True
    ) -> None:
        super().__init__()
        self.weight = weight
        self.auxiliary_weight = auxiliary_weight
        self.deep_supervision = deep_supervision

    def forward(
        self,
        predictions: PixelPredictions,
        targets: list[Instances],
        image_size: tuple[int, int],
        seeds: list[int] | None = None,
    ) -> dict[str, Tensor]:
        """Return weighted `loss_sem_seg`; `loss_sem_seg_0` on are earlier predictions'.

        That of an auxiliary head is `loss_sem_seg_auxiliary`; of several, all but the last have a number.

        Args:
            targets: `gt_classes` (N,) int64 and `gt_masks` (N, h, w) bool of each image; h, w unpadded.
                Pixels outside all masks have no class.
            image_size: (H, W), padded.
            seeds: not used; it draws nothing.
        """
        labels = [label_map(target, image_size) for target in targets]
        layers = predictions.layers if self.deep_supervision else predictions.layers[-1:]
        losses = name_layers({"loss_sem_seg": self.weight * _mean_losses(layers, labels, PIXEL_STRIDE)})
        if predictions.auxiliary is not None:
            logits, stride = predictions.auxiliary
            weight = self.weight * self.auxiliary_weight
            losses |= name_layers({"loss_sem_seg_auxiliary": weight * _mean_losses(logits, labels, stride)})
        return losses


def _mean_losses(layers: Sequence[Tensor], labels: Sequence[Tensor], stride: int) -> Tensor:
    """Return the mean losses (L,) of L layers' logits (B, K, h, w) for one label map (H, W) an image."""
    with torch.autocast(layers[0].device.type, enabled=False):
        # One image and layer at a time, and again in the backward pass: enlarged logits are K H W numbers
        sums = [
            checkpoint(_sum_of_losses, logits, image_labels, stride, use_reentrant=False)
            for layer in layers
            for logits, image_labels in zip(layer.split(1), labels, strict=True)
        ]
    total = torch.stack(sums).view(len(layers), len(labels)).sum(1)
    count = total.new_tensor([float(sum((image != IGNORED).sum() for image in labels))])
    return total / (all_reduce_sum(count).clamp(min=1) / world_size())


def label_map(target: Instances, image_size: tuple[int, int]) -> Tensor:
    """Return the class of each pixel of the padded image, (H, W) int64; IGNORED where there is none."""
    masks = target.gt_masks
    labels = torch.full(image_size, IGNORED, device=masks.device)
    for mask, label in zip(masks, target.gt_classes, strict=True):
        labels[: masks.shape[1], : masks.shape[2]].masked_fill_(mask, label)
    return labels


def _sum_of_losses(logits: Tensor, labels: Tensor, stride: int) -> Tensor:
    """Return the sum of the cross-entropy of logits (1, K, h, w), enlarged, over labels (H, W)."""
    height, width = labels.shape
    cropped = enlarge_class_logits(logits, stride)[..., :height, :width]
    return F.cross_entropy(cropped, labels[None], ignore_index=IGNORED, reduction="sum")


@CRITERION.register_as("PixelCriterion")
def build_pixel_criterion(cfg: Any) -> PixelCriterion:
    """Build the criterion of a config."""
    return PixelCriterion(
        weight=cfg.MODEL.SEM_SEG_HEAD.LOSS_WEIGHT,
        auxiliary_weight=cfg.MODEL.SEM_SEG_HEAD.AUXILIARY_WEIGHT,
        deep_supervision=cfg.MODEL.MASK_FORMER.DEEP_SUPERVISION,
    )
