"""Cityscapes' rules of matching and its AP, on cases computed by hand and against definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from synthetic_cityscapes import Found, box, scene, table_of

from mask2former.evaluation.cityscapes.ground_truth import THINGS, InstanceMap
from mask2former.evaluation.cityscapes.matching import (
    average_precision,
    joined,
    precision_table,
    shared_pixels,
)
from mask2former.evaluation.cityscapes.submission import run_length_masks

CAR, CARAVAN, ROAD = 26, 29, 7


@pytest.mark.parametrize(("other", "expected"), [(0.4, 1.0), (0.9, 0.7)])
def test_the_higher_score_counts_for_two_masks_on_one_object(other, expected):
    # The other has IoU 0.8. At thresholds up to 0.75 it matches, and the lower score of both is a false
    # positive that costs nothing. From 0.80 on, the other is the false positive and costs with score 0.9
    car = box(10, 10, 20, 10)
    found: Found = [(car, CAR, 0.5), (box(10, 10, 16, 10), CAR, other)]
    table = table_of([(scene((26001, car)), found)])
    assert table[THINGS.index(CAR)].mean() == pytest.approx(expected)
    assert np.isnan(np.delete(table, THINGS.index(CAR), 0)).all()


EXCUSES = {
    "a group of the class": (CAR, 15, True),
    "a group of another class": (24, 15, False),
    "an object of the class with too few pixels": (26002, 9, True),
    "void": (4, 15, True),
    "a caravan without a number": (CARAVAN, 15, True),
    "a caravan with a number": (29001, 15, False),
    "nothing": (ROAD, 15, False),
}


@pytest.mark.parametrize(("value", "side", "is_excused"), EXCUSES.values(), ids=EXCUSES)
def test_a_mask_is_excused_by_what_it_lies_on(value, side, is_excused):
    """The mask has a higher score than the car's; it costs half of the precision unless it is excused."""
    car, other = box(0, 0, 12, 12), box(20, 20, side, side)
    found: Found = [(car, CAR, 0.5), (other, CAR, 0.9)]
    table = table_of([(scene((26001, car), (value, other)), found)])[THINGS.index(CAR)]
    assert table == pytest.approx([1.0 if is_excused else 0.25] * 10)


def test_a_mask_is_excused_at_thresholds_below_its_excused_part():
    car, void = box(0, 0, 12, 12), box(20, 20, 10, 7)  # 70 of the 100 pixels
    found: Found = [(car, CAR, 0.5), (box(20, 20, 10, 10), CAR, 0.9)]
    table = table_of([(scene((26001, car), (4, void)), found)])[THINGS.index(CAR)]
    assert table == pytest.approx([1.0] * 4 + [0.25] * 6)  # excused at 0.50 to 0.65; 0.70 is not above 0.70


def test_an_object_of_100_pixels_must_be_found():
    hundred = box(0, 0, 10, 10)
    table = table_of([(scene((26001, hundred)), [(hundred, CAR, 0.5)])])
    assert table[THINGS.index(CAR)].tolist() == [1] * 10


def test_an_iou_or_excuse_equal_to_the_threshold_does_not_count():
    car, half = box(0, 0, 20, 10), box(0, 0, 10, 10)
    found: Found = [(car, CAR, 0.5), (box(20, 20, 10, 10), CAR, 0.9)]
    by_half = table_of([(scene((26001, car), (4, box(20, 20, 10, 5))), found)])[THINGS.index(CAR)]
    assert by_half[0] == pytest.approx(0.25)
    near = table_of([(scene((26001, car)), [(half, CAR, 0.5)])])[THINGS.index(CAR)]
    assert near[0] == 0


def test_missed_classes_are_0_and_classes_without_objects_nan():
    car = box(0, 0, 12, 12)
    missed = table_of([(scene((26001, car), (24001, box(20, 20, 12, 12))), [(car, CAR, 0.5)])])
    assert missed[THINGS.index(24)].tolist() == [0] * 10 and missed[THINGS.index(CAR)].tolist() == [1] * 10
    unwanted = table_of([(scene((24, car), (26001, box(20, 20, 9, 9))), [(car, 25, 0.5)])])
    assert np.isnan(unwanted).all()  # a group, a small object, and a class without objects
    excused = table_of([(scene((26001, car), (4, ~car)), [(box(20, 20, 9, 9), CAR, 0.5)])])
    # No mask counts; cityscapesscripts raises an IndexError
    assert excused[THINGS.index(CAR)].tolist() == [0] * 10
    assert np.isnan(precision_table(joined([]))).all()


@given(
    scores=st.lists(st.sampled_from([0.1, 0.2, 0.5, 0.9]), min_size=1, max_size=8),
    data=st.data(),
    missed=st.integers(0, 3),
)
def test_average_precision_equals_its_definition(scores, data, missed):
    is_hit = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
    total = sum(is_hit) + missed
    curve = []  # (recall, precision) from the lowest score on
    for threshold in sorted(set(scores)):
        kept = [hit for hit, score in zip(is_hit, scores, strict=True) if score >= threshold]
        curve.append((sum(kept) / max(total, 1), sum(kept) / len(kept)))
    curve.append((0.0, 1.0))
    expected = 0.0
    for place, (recall, precision) in enumerate(curve):
        before = curve[max(place - 1, 0)][0]
        after = curve[place + 1][0] if place + 1 < len(curve) else 0.0
        expected += precision * ((before - recall) / 2 + (recall - after) / 2)
    assert average_precision(np.array(is_hit), np.array(scores), missed) == pytest.approx(expected)


@given(
    ids=arrays(np.uint16, (5, 7), elements=st.sampled_from([0, 7, 26, 26001])),
    masks=arrays(bool, (3, 5, 7), elements=st.booleans()),
)
def test_runs_and_shared_pixels_equal_a_count_by_pixel(ids, masks):
    coded = run_length_masks(torch.from_numpy(masks))
    np.testing.assert_array_equal(coded.dense(), masks)
    values = np.unique(ids)
    expected = [[(mask & (ids == value)).sum() for value in values] for mask in masks]
    np.testing.assert_array_equal(
        shared_pixels(InstanceMap(ids, values, values, "synthetic"), coded), expected
    )
