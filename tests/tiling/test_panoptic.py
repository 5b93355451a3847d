"""Painting of merged things over stuff: priorities, the overlap rule, ids and areas."""

import numpy as np
import pytest

from mask2former.modeling.postprocessing.inference import InferenceOptions
from mask2former.modeling.postprocessing.tiles import Tile
from mask2former.tiling import panoptic
from mask2former.tiling.merging import Merged
from mask2former.tiling.panoptic import paint

SIZE = (20, 30)
TILE, WHOLE = Tile(range(20), range(24)), Tile(range(20), range(30))
OPTIONS = InferenceOptions(thing_ids=(0, 1), overlap_threshold=0.5)


def thing(left, top, right, bottom, score, label=0, place=TILE):
    runs = np.array([(x * SIZE[0] + top, x * SIZE[0] + bottom) for x in range(left, right)])
    return Merged([runs], (left, top, right, bottom), label, score, set(), {place})


@pytest.fixture
def stuff():
    """Class 2 on the left, class 3 on the right, nothing between: codes are class ids plus one."""
    codes = np.zeros(SIZE, np.int32)
    codes[:, :10], codes[:, 20:] = 3, 4
    return codes


@pytest.mark.parametrize("pixels_at_once", [2**24, 25])
def test_things_lie_over_stuff_by_score(stuff, monkeypatch, pixels_at_once):
    monkeypatch.setattr(panoptic, "PIXELS_AT_ONCE", pixels_at_once)
    better, worse = thing(2, 2, 12, 8, 0.9), thing(9, 2, 15, 8, 0.8, label=1)
    segments = paint(stuff, [better, worse], 4, OPTIONS)
    assert [(item["id"], item["category_id"], item["isthing"]) for item in segments] == [
        (1, 0, True),
        (2, 1, True),
        (3, 2, False),
        (4, 3, False),
    ]
    expected = np.zeros(SIZE, int)
    expected[:, :10], expected[:, 20:] = 3, 4
    expected[2:8, 9:15] = 2
    expected[2:8, 2:12] = 1
    assert np.array_equal(stuff, expected)


def test_a_thing_that_keeps_too_little_is_left_out(stuff):
    hidden = thing(8, 2, 13, 8, 0.8, label=1)  # 4 of 5 columns are the better one's
    segments = paint(stuff, [thing(2, 2, 12, 8, 0.9), hidden], 4, OPTIONS)
    assert [item["category_id"] for item in segments] == [0, 2, 3]
    assert (stuff[2:8, 12] == 0).all()


def test_things_of_the_whole_image_alone_come_last_and_leave_stuff(stuff):
    coarse = thing(8, 0, 21, 10, 0.99, place=WHOLE)
    segments = paint(stuff, [coarse, thing(12, 2, 14, 8, 0.6, label=1)], 4, OPTIONS)
    assert [item["category_id"] for item in segments] == [1, 0, 2, 3]
    assert (stuff[2:8, 12:14] == 1).all() and (stuff[0, 10:20] == 2).all()
    assert (stuff[:, :10] == 3).all() and (stuff[:, 20:] == 4).all()


def test_a_thing_of_the_whole_image_on_stuff_is_left_out(stuff):
    segments = paint(stuff, [thing(0, 0, 10, 20, 0.99, place=WHOLE)], 4, OPTIONS)
    assert [item["category_id"] for item in segments] == [2, 3]


def test_stuff_that_is_hidden_is_no_segment(stuff):
    segments = paint(stuff, [thing(20, 0, 30, 20, 0.9)], 4, OPTIONS)
    assert [item["category_id"] for item in segments] == [0, 2]


def test_nothing_is_no_segment():
    codes = np.zeros(SIZE, np.int32)
    assert paint(codes, [], 4, OPTIONS) == [] and not codes.any()
