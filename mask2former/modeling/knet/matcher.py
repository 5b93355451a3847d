"""Matching of K-Net's instance kernels and things, on whole masks at stride 4.

Costs are those of the public code: focal loss of the class, the share of cells that agree, and dice with
squares. Their weights are those of the loss.

Shapes: `N` instance kernels, `K` classes, `n` targets or things of an image, `P` cells of a mask.
"""

import torch
from torch import Tensor

from mask2former.modeling.knet.predictions import KNetPredictions, enlarge
from mask2former.modeling.knet.targets import Targets
from mask2former.modeling.loss.mask_terms import DICE_FLOOR, cell_focal_loss
from mask2former.modeling.loss.matcher import LossWeights, assign


@torch.no_grad()
def match(predictions: KNetPredictions, targets: list[Targets], weights: LossWeights) -> list[list[Tensor]]:
    """Return the kernel (n,) of each target, or UNMATCHED, for each stage and image.

    The first stage has the matching of the first masks, which have no classes; each other stage that of the
    stage before it. Stuff has its own kernel.
    """
    count = predictions.first_masks.shape[1]
    own = predictions.allowed[count:].int().argmax(1)  # the class of each stuff kernel, ascending
    stuff = [count + torch.searchsorted(own, target.classes[: target.num_stuff]) for target in targets]
    numbers = [len(target.classes) - target.num_stuff for target in targets]
    shape = (len(predictions.layers), len(targets), count, max(numbers))
    costs = predictions.first_masks.new_zeros(shape)
    for stage, stage_costs in enumerate(costs):
        classes = predictions.layers[stage - 1].class_logits[:, :count].float() if stage else None
        masks = predictions.small_masks(stage - 1)[:, :count] if stage else predictions.first_masks
        for image, target in enumerate(targets):
            values, labels = target.masks[target.num_stuff :], target.classes[target.num_stuff :]
            cost = mask_costs(enlarge(masks[image : image + 1])[0].flatten(1), values.flatten(1), weights)
            if classes is not None:
                cost += weights.classes * class_costs(classes[image], labels)
            stage_costs[image, :, : len(labels)] = cost
    return [
        [
            torch.cat([fixed, kernels[:number]])
            for fixed, kernels, number in zip(stuff, images, numbers, strict=True)
        ]
        for images in assign(costs, numbers)
    ]


def class_costs(logits: Tensor, classes: Tensor) -> Tensor:
    """Return the focal loss of each class if it is right minus that if it is wrong, (N, n).

    Logits are (N, K), classes (n,).
    """
    ones = torch.ones_like(logits)
    return (cell_focal_loss(logits, ones) - cell_focal_loss(logits, torch.zeros_like(logits)))[:, classes]


def mask_costs(logits: Tensor, values: Tensor, weights: LossWeights) -> Tensor:
    """Return the cost (N, n) of mask logits (N, P) and target values (n, P).

    It is minus the weighted mean agreement of cells, p t + (1 - p) (1 - t), minus the weighted dice.
    """
    probabilities = logits.sigmoid()
    inside = probabilities @ values.T
    total = probabilities.sum(1)[:, None] + values.sum(1)
    agreement = (2 * inside - total) / logits.shape[1] + 1
    squares = probabilities.square().sum(1)[:, None] + values.square().sum(1) + 2 * DICE_FLOOR
    return -weights.mask * agreement - weights.dice * 2 * inside / squares
