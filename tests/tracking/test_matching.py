"""Similarities and assignment against slow obvious versions."""

from itertools import permutations

import numpy as np
import pytest

from mask2former.tracking.matching import assign, cosines, mask_centers, mask_ious


def slow_assignment(similarity, minimum):
    """Return the largest sum of similarities above the minimum over all partial assignments."""
    tracks, objects = similarity.shape
    best = 0.0
    nobody = [None] * tracks
    for order in permutations([*range(objects), *nobody], tracks):
        pairs = [(t, n) for t, n in enumerate(order) if n is not None]
        if all(similarity[pair] >= minimum for pair in pairs):
            best = max(best, sum(similarity[pair] - minimum for pair in pairs))
    return best


@pytest.mark.parametrize("seed", range(20))
def test_the_assignment_has_the_most_similarity(seed):
    rng = np.random.default_rng(seed)
    similarity = rng.uniform(-1, 1, rng.integers(0, 4, 2))
    pairs = assign(similarity, 0.2)
    for side in zip(*pairs, strict=True):
        assert len(set(side)) == len(pairs)
    assert all(similarity[pair] >= 0.2 for pair in pairs)
    assert sum(similarity[pair] - 0.2 for pair in pairs) == pytest.approx(slow_assignment(similarity, 0.2))


def test_a_pair_below_the_minimum_does_not_displace_one_above():
    similarity = np.array([[0.9, 0.5], [0.0, -1.0]])
    assert assign(similarity, 0.3) == [(0, 0)]
    assert assign(np.zeros((0, 3)), 0.3) == []


def test_ious_cosines_and_centers_equal_slow_ones():
    rng = np.random.default_rng(0)
    first, second = rng.random((3, 7, 9)) > 0.5, rng.random((4, 7, 9)) > 0.7
    first[1] = second[2] = False
    ious, centers = mask_ious(first, second), mask_centers(second)
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            united = (a | b).sum()
            assert ious[i, j] == pytest.approx((a & b).sum() / united if united else 0)
    for mask, center in zip(second, centers, strict=True):
        expected = (np.argwhere(mask) + 0.5).mean(0) / mask.shape if mask.any() else [np.nan] * 2
        np.testing.assert_allclose(center, expected)
    a, b = rng.normal(size=(3, 5)), rng.normal(size=(2, 5))
    a[0] = 0
    found = cosines(a, b)
    assert not found[0].any()
    for i in (1, 2):
        for j in (0, 1):
            expected = a[i] @ b[j] / np.linalg.norm(a[i]) / np.linalg.norm(b[j])
            assert found[i, j] == pytest.approx(expected)
