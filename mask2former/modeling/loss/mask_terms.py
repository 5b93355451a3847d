"""The two terms of a mask's loss, cross-entropy or focal loss and dice, over cells: points or pixels.

Shapes: `*` any shape, `B` images, `Q` queries, `N` targets, `P` cells of a mask.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

FOCAL_ALPHA = 0.25  # weight of cells inside the target; 1 - alpha is that of cells outside
FOCAL_GAMMA = 2
DICE_FLOOR = 1e-3  # added to each sum of squares in `squared_dice`


def cell_cross_entropy(logits: Tensor, values: Tensor) -> Tensor:
    """Return the binary cross-entropy (*) of each cell's logit and target value in [0, 1], both (*)."""
    return F.binary_cross_entropy_with_logits(logits, values, reduction="none")


def pairwise_cross_entropy(logits: Tensor, values: Tensor) -> Tensor:
    """Return the mean cross-entropy (B, Q, N) of queries' logits (B, Q, P) and targets' values (B, P, N).

    It is softplus(x) - x t, so one product over the cells serves all pairs.
    """
    return (F.softplus(logits).sum(-1, keepdim=True) - logits @ values) / logits.shape[-1]


def cell_focal_loss(logits: Tensor, values: Tensor) -> Tensor:
    """Return the sigmoid focal loss (*), arguments as `cell_cross_entropy` (MaskFormer §3.3)."""
    probabilities = logits.sigmoid()
    missed = probabilities + values - 2 * probabilities * values
    balance = FOCAL_ALPHA * values + (1 - FOCAL_ALPHA) * (1 - values)
    return balance * missed**FOCAL_GAMMA * cell_cross_entropy(logits, values)


def pairwise_focal_loss(logits: Tensor, values: Tensor) -> Tensor:
    """Return the mean focal loss (B, Q, N), arguments as `pairwise_cross_entropy`.

    Values between 0 and 1 mix the losses of 0 and 1.
    """
    probabilities = logits.sigmoid()
    outside = (1 - FOCAL_ALPHA) * probabilities**FOCAL_GAMMA * F.softplus(logits)
    inside = FOCAL_ALPHA * (1 - probabilities) ** FOCAL_GAMMA * F.softplus(-logits)
    return (outside.sum(-1, keepdim=True) + (inside - outside) @ values) / logits.shape[-1]


class MaskLoss(NamedTuple):
    """One loss in two forms: of each cell, and its mean for every pair of a query and a target."""

    of_cells: Callable[[Tensor, Tensor], Tensor]
    of_pairs: Callable[[Tensor, Tensor], Tensor]


MASK_LOSSES = {
    "cross_entropy": MaskLoss(cell_cross_entropy, pairwise_cross_entropy),
    "focal": MaskLoss(cell_focal_loss, pairwise_focal_loss),
}


def mask_terms(logits: Tensor, values: Tensor, mask_loss: str) -> tuple[Tensor, Tensor]:
    """Return the mean loss and dice (*) of mask logits and target values (*, P).

    `mask_loss` is one of `MASK_LOSSES`.
    """
    loss = MASK_LOSSES[mask_loss].of_cells(logits, values).mean(-1)
    probabilities = logits.sigmoid()
    total = probabilities.sum(-1) + values.sum(-1)
    return loss, 1 - (2 * (probabilities * values).sum(-1) + 1) / (total + 1)


def pairwise_mask_terms(logits: Tensor, values: Tensor, mask_loss: str) -> tuple[Tensor, Tensor]:
    """Return the mean loss and dice (B, Q, N) of queries' logits (B, Q, P) and targets' values (B, N, P)."""
    transposed = values.transpose(1, 2)
    loss = MASK_LOSSES[mask_loss].of_pairs(logits, transposed)
    probabilities = logits.sigmoid()
    total = probabilities.sum(-1, keepdim=True) + values.sum(-1)[:, None]
    return loss, 1 - (2 * (probabilities @ transposed) + 1) / (total + 1)


def squared_dice(logits: Tensor, values: Tensor) -> Tensor:
    """Return the dice loss (*) of mask logits and target values (*, P), with squares in its denominator.

    That of V-Net (Milletari et al., 2016), which K-Net uses. Unlike the dice of `mask_terms` it is not
    smoothed, and an empty target costs 1.
    """
    probabilities = logits.sigmoid()
    squares = probabilities.square().sum(-1) + values.square().sum(-1) + 2 * DICE_FLOOR
    return 1 - 2 * (probabilities * values).sum(-1) / squares
