"""K-Net's loss: every kernel's classes, the masks of matched kernels, and a class for each cell.

Instance kernels are matched with things; each stuff class belongs to its own kernel. The first masks and the
first stage use the matching of the first masks, each later stage that of the stage before it. All terms are
computed on whole masks at stride 4 (K-Net §3.4 and its public code, whose normalizations these are).

Everything is in float32, also under autocast. Without targets the mask terms are zeros in the graph.

Shapes: `L` stages, `B` images, `Q` kernels, of which the first `N` are for instances, `K` classes, `n`
targets of an image, `P` cells of a mask, `H, W` the padded image's sides, `h, w` those of the features, at
stride 8.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mask2former.modeling.knet.head import CRITERION_NAME, check_pair
from mask2former.modeling.knet.matcher import match
from mask2former.modeling.knet.predictions import MASK_SCALE, KNetPredictions, enlarge
from mask2former.modeling.knet.targets import Targets, paint, reduce_targets
from mask2former.modeling.loss.criterion import name_layers
from mask2former.modeling.loss.mask_terms import cell_focal_loss, squared_dice
from mask2former.modeling.loss.matcher import UNMATCHED, LossWeights
from mask2former.modeling.loss.pixel_criterion import IGNORED
from mask2former.structures import Instances
from mask2former.utils.comm import all_reduce_sum, world_size
from mask2former.utils.registry import CRITERION

# Keys of MODEL.MASK_FORMER that have one value for K-Net
FIXED = {"MATCH_ON": "masks", "LOSS_ON": "masks", "MASK_LOSS": "cross_entropy", "DEEP_SUPERVISION": True}


class Sums(NamedTuple):
    """Terms of one image and one set of masks, each a sum: over targets, and for `rank` over cells."""

    mask: Tensor
    dice: Tensor
    rank: Tensor


class KNetCriterion(nn.Module):
    """Loss of K-Net's predictions.

    Args:
        thing_ids: the thing classes.
        weights: of classes, masks and dice, in the matching cost and in the loss.
        rank_weight: of the cross-entropy over kernels at each cell of a target.
        seg_weight: of the focal loss over classes at each cell.
    """

    def __init__(
        self, *, thing_ids: Sequence[int], weights: LossWeights, rank_weight: float, seg_weight: float
    ) -> None:
        super().__init__()
        self.thing_ids = list(thing_ids)
        self.weights = weights
        self.rank_weight = rank_weight
        self.seg_weight = seg_weight

    def forward(
        self,
        predictions: KNetPredictions,
        targets: list[Instances],
        image_size: tuple[int, int],
        seeds: list[int] | None = None,
    ) -> dict[str, Tensor]:
        """Return weighted losses by name.

        They are `loss_ce`, `loss_mask`, `loss_dice` and `loss_rank` of the last stage, with `..._0` on those
        of earlier ones; `loss_first_mask`, `..._dice` and `..._rank` of the first masks; and `loss_seg`.

        Args:
            targets: `gt_classes` (n,) int64 and `gt_masks` (n, H, W) bool of each image, unpadded.
            image_size: (H, W), padded.
            seeds: not used; it draws nothing.
        """
        with torch.autocast(predictions.mask_features.device.type, enabled=False):
            height, width = (MASK_SCALE * side for side in predictions.mask_features.shape[2:])
            reduced = [
                reduce_targets(target, self.thing_ids, image_size, (height, width)) for target in targets
            ]
            kernels = match(predictions, reduced, self.weights)
            labels = [_cell_classes(*pair) for pair in zip(reduced, kernels[0], strict=True)]
            num_things, num_targets, num_labeled, num_cells = self._totals(reduced, kernels[0], labels)
            first = self._mask_sums(predictions.first_masks, kernels[0], reduced, things_only=True)
            stages = [
                self._mask_sums(predictions.small_masks(stage), matched, reduced)
                for stage, matched in enumerate(kernels)
            ]
            focal = self._class_sums(predictions, kernels, reduced)
            seg = _seg_sum(predictions.seg_logits, labels)
            last = self._weigh(_stack(stages), num_targets, num_cells)
            before = self._weigh(first, num_things, num_cells)
        return {
            **name_layers({"loss_ce": self.weights.classes * focal / num_targets}),
            **name_layers({f"loss_{name}": term for name, term in last.items()}),
            **{f"loss_first_{name}": term for name, term in before.items()},
            "loss_seg": self.seg_weight * seg / num_labeled,
        }

    def _weigh(self, sums: Sums, num_targets: Tensor, num_cells: Tensor) -> dict[str, Tensor]:
        return {
            "mask": self.weights.mask * sums.mask / num_targets,
            "dice": self.weights.dice * sums.dice / num_targets,
            "rank": self.rank_weight * sums.rank / num_cells,
        }

    def _totals(self, targets: list[Targets], kernels: list[Tensor], labels: list[Tensor]) -> Tensor:
        """Return the numbers that losses are divided by, averaged over processes.

        They are those of matched things, of matched targets, of labeled cells and of all cells; at least 1.
        """
        matched = sum((kernel != UNMATCHED).sum() for kernel in kernels)
        stuff = sum(target.num_stuff for target in targets)
        labeled = sum((image != IGNORED).sum() for image in labels)
        cells = sum(image.numel() for image in labels)
        totals = targets[0].masks.new_tensor([matched - stuff, matched, labeled, cells])
        return all_reduce_sum(totals).clamp(min=1) / world_size()

    def _mask_sums(
        self,
        small_masks: Tensor,
        kernels: list[Tensor],
        targets: list[Targets],
        things_only: bool = False,
    ) -> Sums:
        """Return the sums over images of mask logits (B, Q, h, w) at half of the targets' size."""
        images = []
        for masks, kernel, target in zip(small_masks.split(1), kernels, targets, strict=True):
            counted = kernel != UNMATCHED
            if things_only:
                counted[: target.num_stuff] = False
            values, index = target.masks[counted], kernel[counted]
            order = index.argsort()  # where targets overlap, the last kernel counts
            labels = paint(values[order], index[order])
            images.append(Sums(*checkpoint(_image_sums, masks, index, values, labels, use_reentrant=False)))
        return Sums(*(torch.stack(term).sum(0) for term in zip(*images, strict=True)))

    def _class_sums(
        self, predictions: KNetPredictions, kernels: list[list[Tensor]], targets: list[Targets]
    ) -> Tensor:
        """Return the focal loss of each stage (L,), summed over kernels and the classes each may have."""
        logits = torch.stack([layer.class_logits for layer in predictions.layers]).float()
        wanted = torch.zeros_like(logits)
        for stage, images in enumerate(kernels):
            for image, (kernel, target) in enumerate(zip(images, targets, strict=True)):
                counted = kernel != UNMATCHED
                wanted[stage, image, kernel[counted], target.classes[counted]] = 1
        return (cell_focal_loss(logits, wanted) * predictions.allowed).flatten(1).sum(1)


def _cell_classes(target: Targets, kernels: Tensor) -> Tensor:
    """Return the class of each cell (2h, 2w): that of the last thing there by kernel, else of the last stuff.

    Things without a kernel (n,) do not count.
    """
    stuff, things = kernels.split([target.num_stuff, len(kernels) - target.num_stuff])
    order = torch.cat([stuff.argsort(), target.num_stuff + things.argsort()])
    order = order[kernels[order] != UNMATCHED]
    return paint(target.masks[order], target.classes[order])


def _seg_sum(seg_logits: Tensor, labels: list[Tensor]) -> Tensor:
    """Return the focal loss over classes of logits (B, K, h, w), summed over cells and images."""
    sums = [
        checkpoint(_focal_sum, logits, image, use_reentrant=False)
        for logits, image in zip(seg_logits.split(1), labels, strict=True)
    ]
    return torch.stack(sums).sum()


def _image_sums(small_masks: Tensor, kernel: Tensor, values: Tensor, labels: Tensor) -> Sums:
    """Return the sums for one image.

    Args:
        small_masks: logits of all kernels, (1, Q, h, w).
        kernel: that of each target, (n,).
        values: the targets' masks (n, 2h, 2w).
        labels: the kernel at each cell (2h, 2w), or IGNORED.
    """
    logits = enlarge(small_masks)
    rank = F.cross_entropy(logits, labels[None], ignore_index=IGNORED, reduction="sum")
    matched, cells = logits[0, kernel].flatten(1), values.flatten(1)
    mask = F.binary_cross_entropy_with_logits(matched, cells, reduction="none").mean(1).sum()
    return Sums(mask, squared_dice(matched, cells).sum(), rank)


def _focal_sum(seg_logits: Tensor, labels: Tensor) -> Tensor:
    """Return the focal loss of class logits (1, K, h, w), enlarged, over labels (2h, 2w)."""
    logits = enlarge(seg_logits)[0]
    classes = torch.arange(len(logits), device=labels.device)
    return cell_focal_loss(logits, (labels == classes[:, None, None]).to(logits.dtype)).sum()


def _stack(sums: list[Sums]) -> Sums:
    return Sums(*(torch.stack(term) for term in zip(*sums, strict=True)))


@CRITERION.register_as(CRITERION_NAME)
def build_knet_criterion(cfg: Any) -> KNetCriterion:
    """Build the criterion of a config.

    Raises:
        ValueError: the head is another model's, or a key asks for another loss.
    """
    check_pair(cfg)
    loss = cfg.MODEL.MASK_FORMER
    for key, value in FIXED.items():
        if loss[key] != value:
            raise ValueError(
                f"MODEL.MASK_FORMER.{key} is {loss[key]!r}, but MODEL.MASK_FORMER.CRITERION_NAME "
                f"{CRITERION_NAME} needs {value!r}"
            )
    return KNetCriterion(
        thing_ids=loss.THING_IDS,
        weights=LossWeights(loss.CLASS_WEIGHT, loss.MASK_WEIGHT, loss.DICE_WEIGHT),
        rank_weight=cfg.MODEL.KNET.RANK_WEIGHT,
        seg_weight=cfg.MODEL.KNET.SEG_WEIGHT,
    )
