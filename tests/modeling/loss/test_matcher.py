import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pad_sequence

from mask2former.modeling.loss.mask_terms import pairwise_mask_terms
from mask2former.modeling.loss.matcher import (
    UNMATCHED,
    LossWeights,
    assign,
    class_costs,
    matching_costs,
    rank_non_finite_last,
)
from mask2former.modeling.loss.points import random_points, sample_maps, sample_masks

WEIGHTS = LossWeights(2.0, 5.0, 5.0)


def test_class_cost_is_minus_the_probability():
    probabilities = torch.tensor([[[[1 / 8, 2 / 8, 5 / 8]]]])  # the last is "no object"
    costs = class_costs(probabilities.log(), torch.tensor([[1, 0]]))
    assert costs.flatten().tolist() == pytest.approx([-0.25, -0.125])


def test_costs_on_sampled_features_equal_costs_on_dense_logits():
    random = torch.Generator().manual_seed(1)
    class_logits = torch.randn(2, 2, 5, 4, generator=random)
    embed = torch.randn(2, 2, 5, 6, generator=random)
    features = torch.randn(2, 6, 8, 8, generator=random)
    masks = [torch.rand(n, 32, 32, generator=random) > 0.5 for n in (3, 1)]
    classes = [torch.tensor([2, 0, 1]), torch.tensor([1])]
    points = random_points(2, 2, 50, generator=random)
    values = [
        sample_masks(m, p.expand(len(m), -1, -1, -1), (32, 32)) for m, p in zip(masks, points, strict=True)
    ]
    cells = [
        (
            sample_maps(features, points[:, layer, None])[:, :, 0],
            pad_sequence([v[:, layer] for v in values], True),
        )
        for layer in range(2)
    ]
    costs = matching_costs(class_logits, embed, classes, cells, WEIGHTS, "cross_entropy")
    dense = torch.einsum("lbqc,bchw->lbqhw", embed, features)
    for layer, image in itertools.product(range(2), range(2)):
        logits = sample_maps(dense[layer, image][:, None], points[image, layer].expand(5, 1, -1, -1))[:, 0, 0]
        loss, dice = pairwise_mask_terms(logits[None], values[image][None, :, layer], "cross_entropy")
        of_masks = 5 * loss[0] + 5 * dice[0]
        of_classes = -class_logits[layer, image].softmax(-1)[:, classes[image]]
        expected = of_masks + 2 * of_classes
        assert torch.allclose(costs[layer, image, :, : len(masks[image])], expected, atol=1e-4)


def test_the_unique_optimal_assignment_is_found():
    costs = torch.tensor([[9.0, 1.0, 9.0], [2.0, 0.5, 9.0], [9.0, 9.0, 9.0], [9.0, 9.0, 3.0]])
    # Target 1 is cheapest with query 1, but then target 0 costs 9: the least sum is 2 + 1 + 3.
    assert assign(costs[None, None], [3]).tolist() == [[[1, 0, 3]]]


def test_each_image_uses_only_its_columns():
    costs = torch.rand(3, 2, 4, 3)
    result = assign(costs, [1, 3])
    assert (result[:, 0, 1:] == UNMATCHED).all()
    assert torch.equal(result[:, 0, 0], costs[:, 0, :, 0].argmin(-1))
    assert (result[:, 1].sort(-1).values.diff(dim=-1) > 0).all()


def test_with_more_targets_than_queries_the_most_expensive_are_unmatched():
    costs = torch.tensor([[3.0, 1.0, 2.0, 9.0], [1.0, 3.0, 8.0, 9.0]])
    assert assign(costs[None, None], [4]).tolist() == [[[1, 0, UNMATCHED, UNMATCHED]]]


def test_no_targets_give_an_empty_assignment():
    assert assign(torch.zeros(2, 3, 5, 0), [0, 0, 0]).shape == (2, 3, 0)


BAD = st.sampled_from([math.nan, math.inf, -math.inf])


@settings(max_examples=60)
@given(data=st.data(), sides=st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_non_finite_costs_rank_last(data, sides):
    cell = st.one_of(st.floats(-1e6, 1e6, width=32), BAD)
    count = sides[0] * sides[1]
    costs = np.array(data.draw(st.lists(cell, min_size=count, max_size=count))).reshape(sides)
    assert np.isfinite(rank_non_finite_last(costs)).all()
    chosen = assign(torch.from_numpy(costs)[None, None], [sides[1]])[0, 0].tolist()
    taken = [costs[q, n] for n, q in enumerate(chosen) if q != UNMATCHED]
    assert len(taken) == min(sides)
    assert sum(not math.isfinite(c) for c in taken) == fewest_non_finite(costs)


def fewest_non_finite(costs):
    """Return the smallest number of non-finite pairs over all assignments."""
    if costs.shape[0] < costs.shape[1]:
        costs = costs.T
    queries, targets = costs.shape
    return min(
        sum(not math.isfinite(costs[q, n]) for n, q in enumerate(choice))
        for choice in itertools.permutations(range(queries), targets)
    )


def test_finite_costs_are_unchanged():
    costs = np.arange(6.0).reshape(2, 3)
    assert rank_non_finite_last(costs) is costs
