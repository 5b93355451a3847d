"""The training loss: classes of all queries, and masks of the matched queries at points (paper §3.3).

Everything is computed in float32, also under autocast. The terms are the same for any images: without targets
the mask terms are exact zeros that stay in the graph, so that all processes exchange the same gradients.

Shapes: `L` predictions, `B` images, `Q` queries, `K` classes, `N` targets of an image (in batched tensors the
largest number), `T` targets of the batch, `P` points, `C` channels, `H, W` the padded image's sides.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from mask2former.modeling.loss.matcher import UNMATCHED, LossWeights, assign, matching_costs
from mask2former.modeling.loss.points import (
    random_points,
    sample_maps,
    sample_masks,
    sample_masks_at_shared_points,
    uncertain_points,
)
from mask2former.modeling.predictions import Predictions
from mask2former.structures import Instances
from mask2former.utils.comm import all_reduce_sum, world_size
from mask2former.utils.registry import CRITERION


class _Inputs(NamedTuple):
    """Inputs in float32: class_logits (L, B, Q, K+1), mask_embed (L, B, Q, C), features (B, C, h, w)."""

    class_logits: Tensor
    mask_embed: Tensor
    features: Tensor
    targets: list[Instances]
    image_size: tuple[int, int]
    generators: list[torch.Generator]


class SetCriterion(nn.Module):
    """Loss that matches queries to targets, and weights the three terms of every prediction.

    Args:
        no_object_weight: weight of the class "no object" in the cross-entropy.
        num_points: points sampled in each mask.

    Raises:
        ValueError: a ratio or a number of points is out of range.
    """

    empty_weight: Tensor

    def __init__(
        self,
        *,
        num_classes: int,
        class_weight: float,
        mask_weight: float,
        dice_weight: float,
        no_object_weight: float,
        num_points: int,
        oversample_ratio: float,
        importance_sample_ratio: float,
        deep_supervision: bool = True,
    ) -> None:
        super().__init__()
        if num_points < 1 or oversample_ratio < 1 or not 0 <= importance_sample_ratio <= 1:
            raise ValueError(
                "MODEL.MASK_FORMER: TRAIN_NUM_POINTS and OVERSAMPLE_RATIO must be at least 1 and "
                f"IMPORTANCE_SAMPLE_RATIO within [0, 1], not {num_points}, {oversample_ratio}, "
                f"{importance_sample_ratio}"
            )
        self.num_classes = num_classes
        self.weights = LossWeights(class_weight, mask_weight, dice_weight)
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        self.deep_supervision = deep_supervision
        empty_weight = torch.ones(num_classes + 1)
        empty_weight[-1] = no_object_weight
        self.register_buffer("empty_weight", empty_weight)

    def forward(
        self,
        predictions: Predictions,
        targets: list[Instances],
        image_size: tuple[int, int],
        seeds: list[int] | None = None,
    ) -> dict[str, Tensor]:
        """Return weighted `loss_ce`, `loss_mask` and `loss_dice`; `..._0` on are earlier predictions'.

        Args:
            targets: `gt_classes` (N,) int64 and `gt_masks` (N, h, w) bool of each image; h, w unpadded, and
                N may be 0.
            image_size: (H, W), padded.
            seeds: one per image for its random points, so that losses do not depend on how images are
                distributed over batches and processes; None draws them.
        """
        with torch.autocast(predictions.mask_features.device.type, enabled=False):
            layers = predictions.layers if self.deep_supervision else predictions.layers[-1:]
            features = predictions.mask_features.float()
            inputs = _Inputs(
                torch.stack([layer.class_logits for layer in layers]).float(),
                torch.stack([layer.mask_embed for layer in layers]).float(),
                features,
                targets,
                image_size,
                seeded_generators(seeds, len(targets), features.device),
            )
            queries = self._match(inputs)
            classes = self._target_classes(queries, inputs)
            class_total, target_total = self._normalizers(classes, targets)
            ce = F.cross_entropy(
                inputs.class_logits.flatten(0, 2), classes.flatten(), self.empty_weight, reduction="none"
            )
            ce = ce.view(len(classes), -1).sum(1) / class_total
            mask, dice = self._mask_losses(inputs, queries)
        terms = {
            "loss_ce": self.weights.classes * ce,
            "loss_mask": self.weights.mask * mask / target_total,
            "loss_dice": self.weights.dice * dice / target_total,
        }
        return name_layers(terms)

    @torch.no_grad()
    def _match(self, inputs: _Inputs) -> Tensor:
        """Return the query of each target, (L, B, N) or UNMATCHED; each prediction draws its own points."""
        num_layers, targets = len(inputs.mask_embed), inputs.targets
        points = torch.stack(
            [random_points(num_layers, self.num_points, generator=g) for g in inputs.generators]
        )
        values = [
            sample_masks_at_shared_points(target.gt_masks, image_points, inputs.image_size)
            for target, image_points in zip(targets, points, strict=True)
        ]
        classes = [target.gt_classes for target in targets]
        costs = matching_costs(*inputs[:3], classes, points, values, self.weights)
        return assign(costs, [len(target) for target in targets])

    def _target_classes(self, queries: Tensor, inputs: _Inputs) -> Tensor:
        """Return the target class (L, B, Q) of each query: that of its target, or "no object"."""
        num_layers, num_images, num_queries, _ = inputs.class_logits.shape
        labels = pad_sequence([target.gt_classes for target in inputs.targets], batch_first=True)
        classes = queries.new_full((num_layers, num_images, num_queries + 1), self.num_classes)
        column = queries.where(queries != UNMATCHED, num_queries)  # the last column takes unmatched targets
        return classes.scatter(2, column, labels.expand(num_layers, -1, -1))[..., :num_queries]

    def _normalizers(self, classes: Tensor, targets: list[Instances]) -> tuple[Tensor, Tensor]:
        """Return the class weights (L,) and the number of targets (), averaged over processes.

        The mean of the processes' gradients is then the gradient of one process with all images.
        """
        class_total = self.empty_weight[classes].sum((1, 2))
        num_targets = class_total.new_full((1,), sum(len(target) for target in targets))
        totals = all_reduce_sum(torch.cat([class_total, num_targets]))
        smallest = torch.finfo(totals.dtype).tiny  # for NO_OBJECT_WEIGHT 0 without any target
        return totals[:-1].clamp(min=smallest) / world_size(), totals[-1].clamp(min=1) / world_size()

    def _mask_losses(self, inputs: _Inputs, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return cross-entropy and dice of the matched queries' masks, summed over targets: (L,) each.

        Each image has its own points, chosen by its logits.
        """
        logits, values, matched = [], [], []
        all_features = inputs.features.split(1)  # split keeps the gradients' layout
        images = zip(inputs.targets, inputs.generators, all_features, strict=True)
        for image, (target, generator, features) in enumerate(images):
            query = queries[:, image, : len(target)]  # (L, N)
            index = query.clamp(min=0)[..., None].expand(-1, -1, features.shape[1])
            embed = inputs.mask_embed[:, image].gather(1, index)  # (L, N, C)
            maps = (embed.flatten(0, 1) @ features.flatten(2).squeeze(0)).unflatten(1, features.shape[2:])
            with torch.no_grad():
                points = uncertain_points(
                    maps,
                    self.num_points,
                    oversample_ratio=self.oversample_ratio,
                    importance_sample_ratio=self.importance_sample_ratio,
                    generator=generator,
                )
                by_target = points.unflatten(0, query.shape).transpose(0, 1)
                sampled = sample_masks(target.gt_masks, by_target, inputs.image_size)
                values.append(sampled.transpose(0, 1))
            logits.append(sample_maps(maps[:, None], points[:, None])[:, 0, 0].unflatten(0, query.shape))
            matched.append(query != UNMATCHED)
        counted = torch.cat(matched, dim=1)
        terms = point_losses(torch.cat(logits, dim=1), torch.cat(values, dim=1))
        mask, dice = (term.where(counted, 0).sum(1) for term in terms)
        return mask, dice


def point_losses(logits: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return cross-entropy (mean over points) and dice (L, T) of logits and target values (L, T, P)."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, values, reduction="none").mean(-1)
    probabilities = logits.sigmoid()
    total = probabilities.sum(-1) + values.sum(-1)
    return cross_entropy, 1 - (2 * (probabilities * values).sum(-1) + 1) / (total + 1)


def seeded_generators(seeds: list[int] | None, count: int, device: torch.device) -> list[torch.Generator]:
    """Return one random generator per image; missing seeds come from torch's global generator."""
    if seeds is None:
        seeds = torch.randint(2**62, (count,)).tolist()
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]


def name_layers(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Split terms (L,) into scalars: plain names for the last prediction, numbered names for the others."""
    num_layers = len(terms["loss_ce"])
    suffixes = [*(f"_{layer}" for layer in range(num_layers - 1)), ""]
    return {
        name + suffix: value
        for name, values in terms.items()
        for suffix, value in zip(suffixes, values, strict=True)
    }


@CRITERION.register_as("SetCriterion")
def build_set_criterion(cfg: Any) -> SetCriterion:
    """Build the criterion of a config."""
    loss = cfg.MODEL.MASK_FORMER
    return SetCriterion(
        num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        class_weight=loss.CLASS_WEIGHT,
        mask_weight=loss.MASK_WEIGHT,
        dice_weight=loss.DICE_WEIGHT,
        no_object_weight=loss.NO_OBJECT_WEIGHT,
        num_points=loss.TRAIN_NUM_POINTS,
        oversample_ratio=loss.OVERSAMPLE_RATIO,
        importance_sample_ratio=loss.IMPORTANCE_SAMPLE_RATIO,
        deep_supervision=loss.DEEP_SUPERVISION,
    )
