"""K-Net's rules of panoptic output against its public code's way: whole maps, kernel by kernel."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mask2former.modeling.postprocessing.panoptic import panoptic_segments
from mask2former.modeling.predictions import ImagePrediction, Sizes

THINGS, THING_KERNELS, STUFF = [0, 2], 3, [1, 3]


def slow_panoptic(scores, masks, thing_threshold, overlap_threshold):
    """Return the map of segment ids and the classes by id, of scores (Q, K) and mask logits (Q, H, W)."""
    score, label = scores.max(1)
    masks = masks.sigmoid()
    winner = (score[:, None, None] * masks).argmax(0)
    found, classes = torch.zeros(masks.shape[1:], dtype=torch.int64), []
    for kernel in range(len(masks)):
        if kernel < THING_KERNELS and score[kernel] <= thing_threshold:
            continue
        won, own = winner == kernel, masks[kernel] >= 0.5
        if won.any() and own.any() and won.sum().item() / own.sum().item() >= overlap_threshold:
            classes.append(int(label[kernel]))
            found[won] = len(classes)
    return found, classes


def predict(seed, size):
    random = torch.Generator().manual_seed(seed)
    kernels = THING_KERNELS + len(STUFF)
    scores = torch.zeros(kernels, 5)
    scores[:THING_KERNELS, THINGS] = torch.rand(THING_KERNELS, 2, generator=random)
    scores[range(THING_KERNELS, kernels), STUFF] = torch.rand(len(STUFF), generator=random)
    masks = 4 * torch.randn(kernels, *size, generator=random)
    return ImagePrediction(scores, masks, Sizes(size, size, size), all_compete=True)


@settings(max_examples=80)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    thresholds=st.tuples(st.sampled_from([0.0, 0.3, 0.9]), st.sampled_from([0.0, 0.6])),
    budget=st.sampled_from([1, 2000, 2**20]),
    seed=st.integers(0, 999),
)
def test_segments_equal_those_of_the_public_code(size, thresholds, budget, seed):
    prediction = predict(seed, size)
    found, segments, _ = panoptic_segments(
        prediction,
        thing_ids=THINGS,
        object_mask_threshold=thresholds[0],
        overlap_threshold=thresholds[1],
        memory_budget=budget,
    )
    expected, classes = slow_panoptic(prediction.probabilities[:, :-1], prediction.mask_logits, *thresholds)
    assert torch.equal(found.long(), expected)
    assert segments == [
        {"id": i, "isthing": label in THINGS, "category_id": label} for i, label in enumerate(classes, 1)
    ]


@pytest.mark.parametrize(("rules", "pixels"), [(True, [1, 0, 1]), (False, [1, 1, 0])])
def test_a_thing_below_the_threshold_takes_its_pixels_with_it(rules, pixels):
    """By K-Net's rules the second pixel is the thing's, and stuff keeps what it won outside of its mask."""
    scores = torch.tensor([[0.29, 0.0, 0.0], [0.0, 0.4, 0.0]])
    masks = torch.tensor([[[-9.0, 9.0, -9.0]], [[9.0, 0.1, -0.1]]])
    size = Sizes((1, 3), (1, 3), (1, 3))
    prediction = ImagePrediction(scores, masks, size, all_compete=rules)
    found, *_ = panoptic_segments(
        prediction, thing_ids=[0], object_mask_threshold=0.3, overlap_threshold=0.0, memory_budget=1000
    )
    assert found[0].tolist() == pixels
