"""Cityscapes' rules of matching and its AP, on cases worked out by hand and against slow versions."""

import numpy as np
import pytest
import torch
from cityscapes_drawings import THINGS, Found, box, scene, table_of
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mask2former.evaluation.cityscapes.ground_truth import InstanceMap, published_labels
from mask2former.evaluation.cityscapes.matching import (
    average_precision,
    joined,
    precision_table,
    shared_pixels,
)
from mask2former.evaluation.cityscapes.submission import run_length_masks

LABELS = published_labels()
CAR, CARAVAN, ROAD = 26, 29, 7


@pytest.mark.parametrize(("other", "expected"), [(0.4, 1.0), (0.9, 0.7)])
def test_of_two_masks_on_one_object_the_better_scored_counts(other: float, expected: float) -> None:
    # The other has IoU 0.8: up to 0.75 it is near enough, and the lower score of both is a surplus that costs
    # nothing. From 0.80 on it is a surplus with its own score: of 0.9, half of precision for half of recall
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
def test_what_excuses_a_mask(value: int, side: int, is_excused: bool) -> None:
    """A mask that lies on it, with a higher score than the car's; of what costs, half of the precision."""
    car, other = box(0, 0, 12, 12), box(20, 20, side, side)
    found: Found = [(car, CAR, 0.5), (other, CAR, 0.9)]
    table = table_of([(scene((26001, car), (value, other)), found)])[THINGS.index(CAR)]
    assert table == pytest.approx([1.0 if is_excused else 0.25] * 10)


def test_an_excuse_holds_up_to_the_threshold() -> None:
    car, void = box(0, 0, 12, 12), box(20, 20, 10, 7)  # 70 of the 100 pixels
    found: Found = [(car, CAR, 0.5), (box(20, 20, 10, 10), CAR, 0.9)]
    table = table_of([(scene((26001, car), (4, void)), found)])[THINGS.index(CAR)]
    assert table == pytest.approx([1.0] * 4 + [0.25] * 6)  # 0.50 to 0.65; at 0.70 it is not more


def test_an_object_of_100_pixels_is_to_be_found() -> None:
    hundred = box(0, 0, 10, 10)
    assert (
        table_of([(scene((26001, hundred)), [(hundred, CAR, 0.5)])])[THINGS.index(CAR)].tolist() == [1] * 10
    )


def test_limits_belong_to_the_stricter_side() -> None:
    car, half = box(0, 0, 20, 10), box(0, 0, 10, 10)
    found: Found = [(car, CAR, 0.5), (box(20, 20, 10, 10), CAR, 0.9)]
    by_half = table_of([(scene((26001, car), (4, box(20, 20, 10, 5))), found)])[THINGS.index(CAR)]
    assert by_half[0] == pytest.approx(0.25)
    near = table_of([(scene((26001, car)), [(half, CAR, 0.5)])])[THINGS.index(CAR)]
    assert near[0] == 0


def test_what_is_not_found_and_what_there_is_nothing_of() -> None:
    car = box(0, 0, 12, 12)
    missed = table_of([(scene((26001, car), (24001, box(20, 20, 12, 12))), [(car, CAR, 0.5)])])
    assert missed[THINGS.index(24)].tolist() == [0] * 10 and missed[THINGS.index(CAR)].tolist() == [1] * 10
    unwanted = table_of([(scene((24, car), (26001, box(20, 20, 9, 9))), [(car, 25, 0.5)])])
    assert np.isnan(unwanted).all()  # a group, a small object, and a class without any
    excused = table_of([(scene((26001, car), (4, ~car)), [(box(20, 20, 9, 9), CAR, 0.5)])])
    assert (
        excused[THINGS.index(CAR)].tolist() == [0] * 10
    )  # no mask counts: cityscapesscripts has an IndexError
    assert np.isnan(precision_table(joined([]), THINGS)).all()


@given(
    scores=st.lists(st.sampled_from([0.1, 0.2, 0.5, 0.9]), min_size=1, max_size=8),
    data=st.data(),
    missed=st.integers(0, 3),
)
def test_average_precision_equals_its_definition(
    scores: list[float], data: st.DataObject, missed: int
) -> None:
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
def test_runs_and_shared_pixels_equal_those_counted_one_by_one(ids: np.ndarray, masks: np.ndarray) -> None:
    coded = run_length_masks(torch.from_numpy(masks))
    np.testing.assert_array_equal(coded.dense(), masks)
    values = np.unique(ids)
    expected = [[(mask & (ids == value)).sum() for value in values] for mask in masks]
    np.testing.assert_array_equal(shared_pixels(InstanceMap(ids, values, values, "drawn"), coded), expected)
