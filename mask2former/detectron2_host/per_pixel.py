"""MaskFormer's per-pixel heads, UperNet's and SETR's, as Detectron2's own SemanticSegmentor calls heads.

Shapes: `B` images, `K` classes, `C` channels, `h, w` the sides of a map, `H, W` those of the padded image.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mask2former.modeling.loss.criterion import name_layers
from mask2former.modeling.per_pixel import PerPixelBaselineHead, PerPixelBaselinePlusHead
from mask2former.modeling.predictions import PIXEL_STRIDE, enlarge_class_logits
from mask2former.modeling.setr import SETRHead
from mask2former.modeling.upernet import UperNetHead

Losses = dict[str, Tensor]


class SegmentorInterface(nn.Module):
    """What SemanticSegmentor reads of a head; comes before the class of the head."""

    ignore_value: int
    loss_weight: float
    deep_supervision: bool
    auxiliary_weight: float

    def forward(
        self, features: dict[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, Losses]:
        """Return class logits (B, K, H, W), or in training the losses.

        Features are maps (B, C, h, w) by name, targets label maps (B, H, W).
        """
        predictions = super().forward(features)
        if targets is None:
            return enlarge_class_logits(predictions.layers[-1]), {}
        *earlier, last = predictions.layers
        named = {"": last}
        if self.deep_supervision:
            named |= {f"_{i}": logits for i, logits in enumerate(earlier)}
        losses = {f"loss_sem_seg{suffix}": self._loss(x, targets) for suffix, x in named.items()}
        if predictions.auxiliary is not None:
            logits, stride = predictions.auxiliary
            terms = torch.stack([self._loss(x, targets, stride) for x in logits])
            losses |= name_layers({"loss_sem_seg_auxiliary": self.auxiliary_weight * terms})
        return None, losses

    def _loss(self, logits: Tensor, targets: Tensor, stride: int = PIXEL_STRIDE) -> Tensor:
        enlarged = enlarge_class_logits(logits, stride)[..., : targets.shape[1], : targets.shape[2]]
        return self.loss_weight * F.cross_entropy(enlarged, targets, ignore_index=self.ignore_value)


class HostPerPixelBaselineHead(SegmentorInterface, PerPixelBaselineHead):  # type: ignore[misc]
    """The baseline with Detectron2's interface."""


class HostPerPixelBaselinePlusHead(SegmentorInterface, PerPixelBaselinePlusHead):  # type: ignore[misc]
    """The baseline with queries, with Detectron2's interface."""


class HostUperNetHead(SegmentorInterface, UperNetHead):  # type: ignore[misc]
    """UperNet with Detectron2's interface."""


class HostSETRHead(SegmentorInterface, SETRHead):  # type: ignore[misc]
    """SETR with Detectron2's interface."""


HOST_HEADS: dict[type[nn.Module], type[SegmentorInterface]] = {
    PerPixelBaselineHead: HostPerPixelBaselineHead,
    PerPixelBaselinePlusHead: HostPerPixelBaselinePlusHead,
    UperNetHead: HostUperNetHead,
    SETRHead: HostSETRHead,
}


def with_segmentor_interface(head: nn.Module, cfg: Any) -> nn.Module:
    """Return a per-pixel head as Detectron2's model calls it, in place; other heads as they are."""
    if type(head) not in HOST_HEADS:
        return head
    head.__class__ = HOST_HEADS[type(head)]  # modules and parameters keep their names
    host: Any = head
    host.ignore_value = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    host.loss_weight = cfg.MODEL.SEM_SEG_HEAD.LOSS_WEIGHT
    host.auxiliary_weight = cfg.MODEL.SEM_SEG_HEAD.AUXILIARY_WEIGHT
    host.deep_supervision = cfg.MODEL.MASK_FORMER.DEEP_SUPERVISION
    return host
