"""Matching of queries and targets: the assignment of least cost for each image and prediction.

The cost of a pair needs mask logits only at some cells (random points, or a coarse grid), so features are
sampled there and multiplied by the embeddings. All cost matrices are copied to the host at once, where scipy
solves the assignments.

Shapes: `L` predictions, `B` images, `Q` queries, `K` classes, `N` targets of an image (in batched tensors
the largest number, padded with zeros), `P` cells, `C` channels.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mask2former.modeling.loss.mask_terms import pairwise_mask_terms

UNMATCHED = -1


class LossWeights(NamedTuple):
    """Weights of the terms, both in the matching cost and in the loss."""

    classes: float
    mask: float
    dice: float


def class_costs(class_logits: Tensor, classes: Tensor) -> Tensor:
    """Return minus the target class's probability (L, B, Q, N): of logits (L, B, Q, K+1), classes (B, N)."""
    probabilities = class_logits.softmax(-1)
    index = classes[None, :, None].expand(*probabilities.shape[:3], -1)
    return -probabilities.gather(-1, index)


def matching_costs(
    class_logits: Tensor,
    mask_embed: Tensor,
    classes: list[Tensor],
    cells: Iterable[tuple[Tensor, Tensor]],
    weights: LossWeights,
    mask_loss: str,
) -> Tensor:
    """Return the cost (L, B, Q, N) of every query for every target, in every prediction (paper §3.3).

    Args:
        class_logits, mask_embed: of the predictions, (L, B, Q, K+1) and (L, B, Q, C).
        classes: (N,) of each image.
        cells: for each prediction the mask features (B, C, P) and the targets' values (B, N, P) at the cells.
    """
    mask_terms = []
    for embed, (features, values) in zip(mask_embed, cells, strict=True):
        loss, dice = pairwise_mask_terms(embed @ features, values, mask_loss)
        mask_terms.append(weights.mask * loss + weights.dice * dice)
    class_terms = class_costs(class_logits, pad_sequence(classes, batch_first=True))
    return weights.classes * class_terms + torch.stack(mask_terms)


def rank_non_finite_last(costs: np.ndarray) -> np.ndarray:
    """Replace non-finite costs by one so high that it is chosen only if no finite one is possible."""
    finite = np.isfinite(costs)
    if finite.all():
        return costs
    low, high = (costs[finite].min(), costs[finite].max()) if finite.any() else (0.0, 0.0)
    return np.where(finite, costs, high + min(costs.shape) * (high - low) + 1)


def assign(costs: Tensor, counts: list[int]) -> Tensor:
    """Return the query (L, B, N) of each target: at most one target per query, smallest sum of costs.

    Of the costs (L, B, Q, N), each image uses `counts` columns. UNMATCHED stands in unused columns, and where
    an image has more targets than there are queries.
    """
    from scipy.optimize import linear_sum_assignment  # a slow import, and prediction needs no matching

    on_host = costs.cpu().double().numpy()
    num_layers, num_images, _, num_targets = on_host.shape
    result = np.full((num_layers, num_images, num_targets), UNMATCHED)
    for layer in range(num_layers):
        for image, count in enumerate(counts):
            query, target = linear_sum_assignment(rank_non_finite_last(on_host[layer, image, :, :count]))
            result[layer, image, target] = query
    return torch.from_numpy(result).to(costs.device)
