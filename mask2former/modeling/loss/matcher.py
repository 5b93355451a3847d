"""Matching of queries and targets: the assignment of least cost for each image and prediction.

The cost of a pair needs mask logits only at random points, so features are sampled there and multiplied by
the embeddings; dense logits are never computed. All cost matrices are copied to the host at once, where scipy
solves the assignments.

Shapes: `L` predictions, `B` images, `Q` queries, `K` classes, `N` targets of an image (in batched tensors
the largest number, padded with zeros), `P` points, `C` channels.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from mask2former.modeling.loss.points import sample_maps

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


def mask_costs(logits: Tensor, targets: Tensor, weights: LossWeights) -> Tensor:
    """Return the weighted cross-entropy and dice (B, Q, N) of every query with every target.

    Logits are (B, Q, P) at points, targets (B, N, P) in [0, 1] at the same points. Cross-entropy is
    softplus(x) - x t, so one product over the points serves all pairs.
    """
    transposed = targets.transpose(1, 2)
    cross_entropy = (F.softplus(logits).sum(-1, keepdim=True) - logits @ transposed) / logits.shape[-1]
    probabilities = logits.sigmoid()
    total = probabilities.sum(-1, keepdim=True) + targets.sum(-1)[:, None]
    dice = 1 - (2 * (probabilities @ transposed) + 1) / (total + 1)
    return weights.mask * cross_entropy + weights.dice * dice


def matching_costs(
    class_logits: Tensor,
    mask_embed: Tensor,
    mask_features: Tensor,
    classes: list[Tensor],
    points: Tensor,
    mask_values: list[Tensor],
    weights: LossWeights,
) -> Tensor:
    """Return the cost (L, B, Q, N) of every query for every target, in every prediction (paper §3.3).

    Of the predictions: class_logits (L, B, Q, K+1), mask_embed (L, B, Q, C), mask_features (B, C, h, w). Of
    each image: classes (N,), points (L, P, 2), and mask_values (N, L, P), its masks at its points.
    """
    targets = pad_sequence(mask_values, batch_first=True)
    mask_features = mask_features.contiguous(memory_format=torch.channels_last)  # a point reads all channels
    mask_terms = []
    for layer, embed in enumerate(mask_embed):  # one at a time: sampled features are B C P numbers
        logits = embed @ sample_maps(mask_features, points[:, layer, None])[:, :, 0]
        mask_terms.append(mask_costs(logits, targets[:, :, layer], weights))
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
    on_host = costs.cpu().double().numpy()
    num_layers, num_images, _, num_targets = on_host.shape
    result = np.full((num_layers, num_images, num_targets), UNMATCHED)
    for layer in range(num_layers):
        for image, count in enumerate(counts):
            query, target = linear_sum_assignment(rank_non_finite_last(on_host[layer, image, :, :count]))
            result[layer, image, target] = query
    return torch.from_numpy(result).to(costs.device)
