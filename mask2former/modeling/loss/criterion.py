"""The training loss: classes of all queries, and masks of the matched queries (paper §3.3).

Matching and loss each read masks at random points, or whole masks (the paper's Table 5). Mask2Former uses
points and cross-entropy, MaskFormer whole masks and focal loss.

Everything is computed in float32, also under autocast. The terms are the same for any images: without targets
the mask terms are exact zeros that stay in the graph, so that all processes exchange the same gradients.

Shapes: `L` predictions, `B` images, `Q` queries, `K` classes, `N` targets of an image (in batched tensors the
largest number), `T` targets of the batch, `P` points, `C` channels, `H, W` the padded image's sides, `h, w`
those of the mask features.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from mask2former.modeling.loss.dense import dense_mask_terms, reduce_masks
from mask2former.modeling.loss.mask_terms import MASK_LOSSES, mask_terms
from mask2former.modeling.loss.matcher import UNMATCHED, LossWeights, assign, matching_costs
from mask2former.modeling.loss.pilots import pilot_class_loss, pilot_targets
from mask2former.modeling.loss.points import (
    move_into,
    object_boxes,
    random_points,
    sample_maps,
    sample_masks,
    sample_masks_at_shared_points,
    uncertain_points,
)
from mask2former.modeling.predictions import Prediction, Predictions
from mask2former.structures import Instances
from mask2former.utils.comm import all_reduce_sum, world_size
from mask2former.utils.registry import CRITERION

WHERE = ("points", "masks")  # to match, and to compute the loss


class MatchInputs(NamedTuple):
    """Inputs in float32: class_logits (L, B, Q, K+1), mask_embed (L, B, Q, C).

    features: the mask features (B, C, h, w) that all predictions share, alone in a list; or those of each.
    """

    class_logits: Tensor
    mask_embed: Tensor
    features: list[Tensor]
    targets: list[Instances]
    image_size: tuple[int, int]
    generators: list[torch.Generator]


class SetCriterion(nn.Module):
    """Loss that matches queries to targets, and weights the three terms of every prediction.

    Args:
        no_object_weight: weight of the class "no object" in the cross-entropy.
        num_points: points sampled in each mask.
        match_on, loss_on: "points", or "masks" for whole masks, which need no points.
        mask_loss: "cross_entropy" or "focal", beside dice.
        object_point_ratio: share of the points, both to match and for the loss, that is drawn around the
            objects, each of which gets as many as another. It is for small objects, on which few of the
            points fall that are drawn anywhere. This project's own; on a CPU it takes 4 % of a small model's
            training step.

    Raises:
        ValueError: a ratio or a number of points is out of range, or a word is unknown.
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
        match_on: str = "points",
        loss_on: str = "points",
        mask_loss: str = "cross_entropy",
        deep_supervision: bool = True,
        object_point_ratio: float = 0.0,
    ) -> None:
        super().__init__()
        check_word("MATCH_ON", match_on, WHERE)
        check_word("LOSS_ON", loss_on, WHERE)
        check_word("MASK_LOSS", mask_loss, tuple(MASK_LOSSES))
        if num_points < 1 or oversample_ratio < 1 or not 0 <= importance_sample_ratio <= 1:
            raise ValueError(
                "MODEL.MASK_FORMER: TRAIN_NUM_POINTS and OVERSAMPLE_RATIO must be at least 1 and "
                f"IMPORTANCE_SAMPLE_RATIO within [0, 1], not {num_points}, {oversample_ratio}, "
                f"{importance_sample_ratio}"
            )
        if not 0 <= object_point_ratio <= 1:
            raise ValueError(
                f"MODEL.MASK_FORMER.OBJECT_POINT_RATIO is {object_point_ratio}; it must be within [0, 1]"
            )
        self.num_classes = num_classes
        self.weights = LossWeights(class_weight, mask_weight, dice_weight)
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        self.match_on, self.loss_on, self.mask_loss = match_on, loss_on, mask_loss
        self.deep_supervision = deep_supervision
        self.object_point_ratio = object_point_ratio
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

        Those of pilots, if there are any, are `loss_pilot_ce` and so on.

        Args:
            targets: `gt_classes` (N,) int64 and `gt_masks` (N, h, w) bool of each image; h, w unpadded, and
                N may be 0.
            image_size: (H, W), padded.
            seeds: one per image for its random points, so that losses do not depend on how images are
                distributed over batches and processes; None draws them.
        """
        with torch.autocast(predictions.mask_features.device.type, enabled=False):
            layers = predictions.layers if self.deep_supervision else predictions.layers[-1:]
            features = [layer.mask_features for layer in layers if layer.mask_features is not None]
            inputs = MatchInputs(
                torch.stack([layer.class_logits for layer in layers]).float(),
                torch.stack([layer.mask_embed for layer in layers]).float(),
                [maps.float() for maps in features or [predictions.mask_features]],
                targets,
                image_size,
                seeded_generators(seeds, len(targets), predictions.mask_features.device),
            )
            queries = self._match(inputs)
            labels = [target.gt_classes for target in targets]
            ce, target_total = class_loss(inputs.class_logits, queries, labels, self.empty_weight)
            mask, dice = self._mask_losses(inputs, queries)
            terms = self._weighted("loss", ce, mask, dice, target_total)
            if predictions.pilots is not None:
                terms |= self._pilot_terms(inputs, predictions.pilots, target_total)
        return name_layers(terms)

    def _weighted(
        self, name: str, ce: Tensor, mask: Tensor, dice: Tensor, total: Tensor
    ) -> dict[str, Tensor]:
        """Return the weighted terms (L,) by name; `mask` and `dice` are sums over `total` targets."""
        return {
            f"{name}_ce": self.weights.classes * ce,
            f"{name}_mask": self.weights.mask * mask / total,
            f"{name}_dice": self.weights.dice * dice / total,
        }

    def _pilot_terms(
        self, inputs: MatchInputs, pilots: list[Prediction], target_total: Tensor
    ) -> dict[str, Tensor]:
        """Return the weighted terms (L,) of pilots, which are means over the targets and groups."""
        layers = pilots if self.deep_supervision else pilots[-1:]
        class_logits = torch.stack([layer.class_logits for layer in layers]).float()
        groups, targets, of_targets = pilot_targets(inputs.targets, class_logits.shape[2])
        mask_embed = torch.stack([layer.mask_embed for layer in layers]).float()
        told = inputs._replace(class_logits=class_logits, mask_embed=mask_embed, targets=targets)
        mask, dice = self._mask_losses(told, of_targets.expand(len(layers), -1, -1))
        ce, total = pilot_class_loss(class_logits, of_targets, targets), groups * target_total
        return self._weighted("loss_pilot", ce / total, mask, dice, total)

    @torch.no_grad()
    def _match(self, inputs: MatchInputs) -> Tensor:
        """Return the query of each target, (L, B, N) or UNMATCHED."""
        cells = self._cells_at_points(inputs) if self.match_on == "points" else _cells_of_masks(inputs)
        classes = [target.gt_classes for target in inputs.targets]
        costs = matching_costs(*inputs[:2], classes, cells, self.weights, self.mask_loss)
        return assign(costs, [len(target) for target in inputs.targets])

    def _cells_at_points(self, inputs: MatchInputs) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield features (B, C, P) and target values (B, N, P) of each prediction, at points of its own."""
        points = self._shared_points(inputs)
        values = [
            sample_masks_at_shared_points(target.gt_masks, image_points, inputs.image_size)
            for target, image_points in zip(inputs.targets, points, strict=True)
        ]
        padded = pad_sequence(values, batch_first=True)  # (B, N, L, P)
        for layer, features in enumerate(_of_each_prediction(inputs)):  # sampled features are B C P numbers
            yield sample_maps(features, points[:, layer, None])[:, :, 0], padded[:, :, layer]

    def _shared_points(self, inputs: MatchInputs) -> Tensor:
        """Draw the points (B, L, P, 2) of each prediction at which all queries and targets are compared."""
        points = torch.stack(
            [random_points(len(inputs.mask_embed), self.num_points, generator=g) for g in inputs.generators]
        )
        for image_points, target in zip(points, inputs.targets, strict=True):
            if self.object_point_ratio and len(target):
                boxes = object_boxes(target.gt_masks, inputs.image_size)
                shared = boxes[torch.arange(self.num_points, device=boxes.device) % len(boxes)]
                move_into(image_points, shared, self.object_point_ratio)
        return points

    def _mask_losses(self, inputs: MatchInputs, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mask loss and dice of the matched queries, summed over targets: (L,) each."""
        on_points = self.loss_on == "points"
        terms = (self._terms_at_points if on_points else self._terms_of_masks)(inputs, queries)
        counted = torch.cat(
            [queries[:, image, : len(target)] != UNMATCHED for image, target in enumerate(inputs.targets)], 1
        )
        mask, dice = (term.where(counted, 0).sum(1) for term in terms)
        return mask, dice

    def _terms_at_points(self, inputs: MatchInputs, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return the terms (L, T); each image has its own points, chosen by its logits."""
        logits, values = [], []
        for image, (embed, features) in enumerate(_matched(inputs, queries)):
            masks = inputs.targets[image].gt_masks.flatten(0, -3)  # also of all frames of a clip
            maps = _mask_maps(embed, features)
            shape = (len(embed), len(masks))
            with torch.no_grad():
                boxes = None
                if self.object_point_ratio:
                    boxes = object_boxes(masks, inputs.image_size).repeat(shape[0], 1)
                points = uncertain_points(
                    maps,
                    self.num_points,
                    oversample_ratio=self.oversample_ratio,
                    importance_sample_ratio=self.importance_sample_ratio,
                    generator=inputs.generators[image],
                    boxes=boxes,
                    object_ratio=self.object_point_ratio,
                )
                by_target = points.unflatten(0, shape).transpose(0, 1)
                values.append(sample_masks(masks, by_target, inputs.image_size).transpose(0, 1))
            logits.append(sample_maps(maps[:, None], points[:, None])[:, 0, 0].unflatten(0, shape))
        return mask_terms(torch.cat(logits, dim=1), torch.cat(values, dim=1), self.mask_loss)

    def _terms_of_masks(self, inputs: MatchInputs, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return the terms (L, T) over all pixels of the padded image."""
        terms: tuple[list[Tensor], list[Tensor]] = [], []
        for target, (embed, features) in zip(inputs.targets, _matched(inputs, queries), strict=True):
            parts = [
                dense_mask_terms(part, maps[0], target.gt_masks, inputs.image_size, self.mask_loss)
                for part, maps in zip(embed.chunk(len(features)), features, strict=True)
            ]
            for term, values in zip(terms, zip(*parts, strict=True), strict=True):
                term.append(torch.cat(values))
        return torch.cat(terms[0], dim=1), torch.cat(terms[1], dim=1)


def class_loss(
    class_logits: Tensor, queries: Tensor, labels: list[Tensor], empty_weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy (L,) of class logits (L, B, Q, K+1), and the number of targets ().

    `queries` (L, B, N) are those that match targets with `labels` (N,); all others shall be "no object". Both
    results are normalized by averages over processes: the mean of the processes' gradients is then the
    gradient of one process with all images.
    """
    classes = _target_classes(queries, labels, class_logits.shape[2], len(empty_weight) - 1)
    class_total, target_total = _normalizers(classes, labels, empty_weight)
    ce = F.cross_entropy(class_logits.flatten(0, 2), classes.flatten(), empty_weight, reduction="none")
    return ce.view(len(classes), -1).sum(1) / class_total, target_total


def _target_classes(queries: Tensor, labels: list[Tensor], num_queries: int, no_object: int) -> Tensor:
    """Return the target class (L, B, Q) of each query: that of its target, or "no object"."""
    classes = queries.new_full((*queries.shape[:2], num_queries + 1), no_object)
    column = queries.where(queries != UNMATCHED, num_queries)  # the last column takes unmatched targets
    of_targets = pad_sequence(labels, batch_first=True).expand(len(queries), -1, -1)
    return classes.scatter(2, column, of_targets)[..., :num_queries]


def _normalizers(classes: Tensor, labels: list[Tensor], empty_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the class weights (L,) and the number of targets (), averaged over processes."""
    class_total = empty_weight[classes].sum((1, 2))
    num_targets = class_total.new_full((1,), sum(len(label) for label in labels))
    totals = all_reduce_sum(torch.cat([class_total, num_targets]))
    smallest = torch.finfo(totals.dtype).tiny  # for NO_OBJECT_WEIGHT 0 without any target
    return totals[:-1].clamp(min=smallest) / world_size(), totals[-1].clamp(min=1) / world_size()


def _matched(inputs: MatchInputs, queries: Tensor) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Yield the matched queries' embeddings (L, N, C) and the features (1, C, h, w) of each image.

    Unmatched targets get some query; what is computed of it is not counted.
    """
    by_image = zip(*(maps.split(1) for maps in inputs.features), strict=True)  # keeps the gradients' layout
    for image, (target, features) in enumerate(zip(inputs.targets, by_image, strict=True)):
        query = queries[:, image, : len(target)]
        index = query.clamp(min=0)[..., None].expand(-1, -1, inputs.mask_embed.shape[-1])
        yield inputs.mask_embed[:, image].gather(1, index), list(features)


def _mask_maps(embed: Tensor, features: list[Tensor]) -> Tensor:
    """Return logits (L N, h, w) of embeddings (L, N, C) and features (1, C, h, w); of clips, N F for N."""
    maps = [
        part.flatten(0, 1) @ of_part.flatten(2).squeeze(0)
        for part, of_part in zip(embed.chunk(len(features)), features, strict=True)
    ]
    logits = maps[0] if len(maps) == 1 else torch.cat(maps)
    return logits.unflatten(1, (-1, *features[0].shape[-2:])).flatten(0, 1)


def _of_each_prediction(inputs: MatchInputs) -> list[Tensor]:
    """Return the features (B, C, h, w) of all L predictions, channels last: a point reads all channels."""
    maps = [maps.contiguous(memory_format=torch.channels_last) for maps in inputs.features]
    return maps * (len(inputs.mask_embed) // len(maps))


def _cells_of_masks(inputs: MatchInputs) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield features (B, C, h w) and target values (B, N, h w) of each prediction; values are the same."""
    size = (inputs.features[0].shape[2], inputs.features[0].shape[3])
    reduced = [reduce_masks(target.gt_masks, inputs.image_size, size) for target in inputs.targets]
    values = pad_sequence([masks.flatten(1) for masks in reduced], batch_first=True)
    for features in inputs.features * (len(inputs.mask_embed) // len(inputs.features)):
        yield features.flatten(2), values


def check_word(key: str, word: str, words: tuple[str, ...]) -> None:
    """Raise ValueError if a key of MODEL.MASK_FORMER has a word that is none of `words`."""
    if word not in words:
        raise ValueError(f"MODEL.MASK_FORMER.{key} is {word!r}; it must be one of {', '.join(words)}")


def seeded_generators(seeds: list[int] | None, count: int, device: torch.device) -> list[torch.Generator]:
    """Return one random generator per image; missing seeds come from torch's global generator."""
    if seeds is None:
        seeds = torch.randint(2**62, (count,)).tolist()
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]


def name_layers(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Split terms (L,) into scalars: plain names for the last prediction, numbered names for the others."""
    num_layers = len(next(iter(terms.values())))
    suffixes = [*(f"_{layer}" for layer in range(num_layers - 1)), ""]
    return {
        name + suffix: value
        for name, values in terms.items()
        for suffix, value in zip(suffixes, values, strict=True)
    }


@CRITERION.register_as("SetCriterion")
def build_set_criterion(cfg: Any) -> SetCriterion:
    """Build the criterion of a config."""
    return SetCriterion(**criterion_arguments(cfg))


def criterion_arguments(cfg: Any) -> dict[str, Any]:
    """Read the arguments of `SetCriterion` from a config."""
    loss = cfg.MODEL.MASK_FORMER
    return {
        "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        "class_weight": loss.CLASS_WEIGHT,
        "mask_weight": loss.MASK_WEIGHT,
        "dice_weight": loss.DICE_WEIGHT,
        "no_object_weight": loss.NO_OBJECT_WEIGHT,
        "num_points": loss.TRAIN_NUM_POINTS,
        "oversample_ratio": loss.OVERSAMPLE_RATIO,
        "importance_sample_ratio": loss.IMPORTANCE_SAMPLE_RATIO,
        "match_on": loss.MATCH_ON,
        "loss_on": loss.LOSS_ON,
        "mask_loss": loss.MASK_LOSS,
        "deep_supervision": loss.DEEP_SUPERVISION,
        "object_point_ratio": loss.OBJECT_POINT_RATIO,
    }
