"""Rules of panoptic quality: a case computed by hand, and a reference implementation."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from reference_metrics import reference_panoptic_counts

from mask2former.evaluation.panoptic.counts import (
    count_matches,
    places_of,
    quality,
    read_categories,
    read_segments,
)

ROWS = [
    {"id": 4, "name": "thing", "isthing": 1},
    {"id": 1, "name": "stuff", "isthing": 0},
    {"id": 9, "name": "other", "isthing": 1},
]
CATEGORIES = read_categories({"categories": ROWS}, "synthetic")
Infos = list[dict[str, Any]]


def counts_of(gt_map: Any, gt: Infos, pred_map: Any, pred: Infos) -> np.ndarray:
    truth = read_segments({"segments_info": gt}, CATEGORIES, "gt")
    prediction = read_segments({"segments_info": pred}, CATEGORIES, "pred")
    return count_matches(np.array(gt_map), truth, np.array(pred_map), prediction, 3, "image 1")[0]


def test_a_case_computed_by_hand():
    gt_map = [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 3, 3], [0, 0, 3, 3]]
    gt = [
        {"id": 1, "category_id": 4, "area": 4, "iscrowd": 0},
        {"id": 2, "category_id": 4, "area": 4, "iscrowd": 1},
        {"id": 3, "category_id": 1, "area": 6, "iscrowd": 0},
    ]
    pred_map = [[5, 5, 6, 6], [5, 7, 6, 6], [8, 8, 8, 8], [8, 8, 8, 8]]
    pred = [{"id": id, "category_id": category} for id, category in ((5, 4), (6, 4), (7, 4), (8, 1))]
    # 5 has 3 of the 4 pixels of 1: IoU 0.75, a match. 6 lies on a crowd of its category: excused.
    # 7 has 1 of the 4 pixels of 1: FP. 8 has all of 3, and its 2 pixels on void do not count: IoU 1.
    counts = counts_of(gt_map, gt, pred_map, pred)
    np.testing.assert_array_equal(counts, [[0.75, 1, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]])
    # thing: PQ 0.75 / 1.5, SQ 0.75, RQ 1 / 1.5; stuff: all 1; "other" is nowhere and left out
    results = quality(counts[None], CATEGORIES)
    expected = {"PQ": 75, "SQ": 87.5, "RQ": 250 / 3, "PQ_th": 50, "SQ_th": 75, "RQ_th": 200 / 3, "PQ_st": 100}
    assert {name: results[name] for name in expected} == pytest.approx(expected)
    assert (results["n"], results["n_th"], results["n_st"]) == (2, 1, 1)
    assert np.isnan(results["PQ-other"]) and results["PQ-thing"] == pytest.approx(50)


@st.composite
def map_pairs(draw: st.DrawFn) -> tuple[np.ndarray, Infos, np.ndarray, Infos]:
    """Draw a ground truth with void, crowds, wrong areas, absent and unlisted segments, and a prediction."""
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 6)))
    gt_map = draw(arrays(np.uint32, shape, elements=st.sampled_from([0, 1, 2, 3, 4, 70000])))
    pred_map = draw(arrays(np.uint32, shape, elements=st.sampled_from([0, 1, 5, 300, 2**24 - 1])))
    category = st.sampled_from([4, 1, 9])
    gt = [
        {
            "id": id,
            "category_id": draw(category),
            "area": int((gt_map == id).sum()) + draw(st.sampled_from([0, 0, 1, 7])),
            "iscrowd": int(draw(st.booleans())),
        }
        for id in draw(st.permutations([1, 2, 3, 4]))
    ]
    pred = [{"id": id, "category_id": draw(category)} for id in np.unique(pred_map).tolist() if id]
    return gt_map, gt, pred_map, pred


@given(pair=map_pairs())
def test_equals_the_reference(pair):
    expected = reference_panoptic_counts(pair[:2], pair[2:], CATEGORIES.places)
    np.testing.assert_allclose(counts_of(*pair), expected, rtol=1e-12)


@given(values=arrays(np.uint32, 12, elements=st.integers(0, 6)), ids=st.lists(st.integers(1, 6), unique=True))
def test_places_of_values(values, ids):
    order = [0, *ids]
    expected = [order.index(value) if value in order else len(ids) + 1 for value in values]
    np.testing.assert_array_equal(places_of(values, np.array(ids, np.int64)), expected)


def test_only_the_last_crowd_of_a_category_excuses():
    gt_map, pred_map = [[1, 1, 1, 2, 2, 2]], [[5, 5, 5, 6, 6, 6]]
    gt = [{"id": id, "category_id": 4, "area": 3, "iscrowd": 1} for id in (1, 2)]
    pred = [{"id": 5, "category_id": 4}, {"id": 6, "category_id": 4}]
    # 5 lies on the crowd before the last
    assert counts_of(gt_map, gt, pred_map, pred)[2].tolist() == [1, 0, 0]
    pred[1]["category_id"] = 9
    assert counts_of(gt_map, gt, pred_map, pred)[2].tolist() == [1, 0, 1]


def test_exactly_one_half_neither_matches_nor_excuses():
    gt = [{"id": 1, "category_id": 4, "area": 4, "iscrowd": 0}]
    counts = counts_of([[1, 1, 1, 1, 0, 0]], gt, [[5, 5, 0, 0, 5, 5]], [{"id": 5, "category_id": 4}])
    assert counts[:, 0].tolist() == [0, 0, 1, 1]  # IoU 2 / 4, and 2 of its 4 pixels on void


def test_a_group_without_categories_is_nan():
    results = quality(np.zeros((1, 4, 3)), CATEGORIES)
    assert results["n"] == 0 and np.isnan([results["PQ"], results["SQ_th"], results["RQ_st"]]).all()
    stuff_only = counts_of(
        [[3]], [{"id": 3, "category_id": 1, "area": 1}], [[8]], [{"id": 8, "category_id": 1}]
    )
    results = quality(stuff_only[None], CATEGORIES)
    assert (results["PQ"], results["PQ_st"]) == (100, 100) and np.isnan(results["PQ_th"])


GOOD = {"id": 1, "category_id": 4, "area": 1, "iscrowd": 0}


@pytest.mark.parametrize(
    ("gt", "gt_map", "pred", "message"),
    [
        ([GOOD], [[1, 1]], [], r"image 1: segment id 5 is in the predicted map, not in its segments_info"),
        ([GOOD], [[1, 1]], [(5, 4), (6, 4)], r"image 1: segment id 6 is in the prediction's segments_info"),
        (
            [GOOD],
            [[1, 1]],
            [(5, 77)],
            r"pred: segment 5: category_id 77 is not among the categories",
        ),
        ([GOOD], [[1, 1]], [(5, 4), (5, 4)], r"pred: segments_info lists the id 5 twice"),
        (
            [GOOD],
            [[1, 1]],
            [(0, 4)],
            r"pred: segment 0: 'id' is 0, expected a whole number in \[1, ",
        ),
        ([GOOD], [[1, 1]], [("5", 4)], r"pred: segment '5': 'id' is '5', expected a whole number in"),
        ([{**GOOD, "category_id": 2}], [[1, 1]], [(5, 4)], r"gt: segment 1: category_id 2 is not among"),
        (
            [GOOD],
            [[1], [1]],
            [(5, 4)],
            r"image 1: the prediction is \(1, 2\) pixels, the ground truth \(2, 1\)",
        ),
    ],
)
def test_invalid_input_is_an_error(gt, gt_map, pred, message):
    with pytest.raises(ValueError, match=message):
        counts_of(gt_map, gt, [[5, 5]], [{"id": id, "category_id": category} for id, category in pred])
