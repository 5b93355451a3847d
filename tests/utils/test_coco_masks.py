"""Compressed run lengths: the pixels of valid codes, and invalid codes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from synthetic_coco import compressed_rle

from mask2former.utils.coco_masks import (
    check_points,
    checked_rle,
    count_pixels,
    pixel_counts,
    sound_polygons,
    whole_codes,
)
from mask2former.utils.coco_values import segmentation


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))), st.integers(1, 40))
def test_a_code_has_as_many_pixels_as_its_mask(mask, scale):
    mask = np.kron(mask, np.ones((scale, 1), bool))  # runs of one character and of several
    code = compressed_rle(mask)["counts"]
    assert count_pixels(code) == count_pixels(code.encode()) == mask.size


@pytest.mark.parametrize("code", ["", "P", "ab", "00O", "\u00e9", "\ud800", "  ", "P" * 13 + "0"])
def test_invalid_codes_are_refused(code):
    with pytest.raises(ValueError, match="the counts"):
        count_pixels(code)


@given(st.lists(st.one_of(st.binary(max_size=12), st.text("0123456789NOPQ", max_size=12))))
def test_many_codes_have_the_pixels_of_each_one(codes):
    def alone(code):
        try:
            return count_pixels(code)
        except ValueError:
            return -1

    valid = [compressed_rle(np.eye(n, 5, dtype=bool))["counts"] for n in (1, 3, 7)]
    assert pixel_counts(codes) == [alone(code) for code in codes]
    assert pixel_counts([*valid, *codes, *valid])[: len(valid)] == [5, 15, 35]


def code_of(runs):
    """Return the compressed code of runs, of which broken ones may be negative."""
    code = ""
    for i, run in enumerate(runs):
        number, more = run - (runs[i - 2] if i > 2 else 0), True
        while more:
            digit, number = number & 31, number >> 5
            more = number != (-1 if digit & 16 else 0)
            code += chr(48 + digit + 32 * more)
    return code


RUN = st.one_of(st.integers(-1, 40), st.integers(0, 2**31))


@given(st.lists(st.lists(RUN, min_size=1, max_size=9), min_size=1, max_size=6))
def test_codes_have_the_sum_of_their_runs_of_which_none_is_negative(all_runs):
    sums = [sum(runs) if min(runs) >= 0 else -1 for runs in all_runs]
    assert pixel_counts([code_of(runs) for runs in all_runs]) == sums


def test_whole_codes_are_those_that_a_check_of_each_takes():
    code = compressed_rle(np.eye(4, 6, dtype=bool))
    masks = [code, [[0, 0, 4, 0, 4, 4]], {**code, "size": [6, 4]}, {**code, "counts": "13"}, None]
    masks += [
        {"size": [4, 6], "counts": [24]},
        {"counts": code["counts"]},
        "x",
        {**code, "counts": "abc"},
        code,
    ]
    assert whole_codes(masks, [SIZE] * 9 + [(4, 7)]) == {0}
    assert whole_codes([], []) == set()


SIZE = (4, 6)


def zigzag(edges, length):
    """Return a polygon that crosses the border of an image again and again."""
    return [value for i in range(edges) for value in (length * (i % 2), i / edges)]


def test_polygons_with_endless_borders_are_refused():
    assert len(check_points([zigzag(100, 10), [0, 0, 6, 0, 6, 4]], SIZE)) == 103
    assert len(check_points([zigzag(11, 590)] * 20, SIZE)) == 220  # 20 borders of 5,900 pixels each
    with pytest.raises(
        ValueError, match=r"a polygon's border is 6\.49e\+03 pixels long; the limit is 6e\+03"
    ):
        check_points([[0, 0, 6, 0, 6, 4], zigzag(12, 590)], SIZE)
    with pytest.raises(ValueError, match=r"border is 4e\+08 pixels long; the limit is 1e\+07"):
        check_points([[0, 0, 2e8, 0, 0, 1]], (1, 200_000_000))


def test_whole_floats_are_read_as_run_lengths():
    code = checked_rle({"size": [4, 6], "counts": [5.0, 3, 16.0]}, SIZE)
    assert code["counts"] == [5, 3, 16] and all(type(run) is int for run in code["counts"])


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ({"size": [6, 4], "counts": [24]}, r"\(6, 4\) for an image of \(4, 6\).*not \[width, height\]"),
        ({"size": [5, 6], "counts": [30]}, r"\(height, width\) \(5, 6\) for an image of \(4, 6\)"),
        ({"size": None, "counts": [24]}, r"\(height, width\) None"),
        ({"size": [4, 6]}, "no 'counts'"),
        ({"size": [4, 6], "counts": None}, "the counts are None"),
        ({"size": [4, 6], "counts": []}, "0 of 24 pixels; the runs end early"),
        ({"size": [4, 6], "counts": [5, 3]}, "8 of 24 pixels; the runs end early"),
        ({"size": [4, 6], "counts": [5, 30]}, "35 of 24 pixels$"),
        ({"size": [4, 6], "counts": [1, 2, 5, 2, 9, 3]}, r"look like \(start, length\) pairs"),
        ({"size": [4, 6], "counts": [[1, 2], [5, 2]]}, r"hold \[1, 2\].*\(start, length\) pairs"),
        ({"size": [4, 6], "counts": [5, -3, 22]}, "hold -3, which is not the length"),
        ({"size": [4, 6], "counts": [5.5, 18.5]}, r"hold 5\.5"),
        ({"size": [4, 6], "counts": ["24"]}, "hold '24'"),
        ({"size": [4, 6], "counts": [float("inf")]}, "hold inf"),
        ({"size": [4, 6], "counts": [float("nan")]}, "hold nan"),
        ({"size": [4, 6], "counts": "5 3 16"}, "no run lengths but numbers as text"),
        ({"size": [4, 6], "counts": "[5, 3, 16]"}, "no run lengths but numbers as text"),
    ],
)
def test_runs_that_do_not_cover_the_image_are_refused(code, message):
    with pytest.raises(ValueError, match=message) as caught:
        checked_rle(code, SIZE)
    assert len(str(caught.value)) < 200


def test_more_pixels_than_pycocotools_counts_are_refused():
    with pytest.raises(ValueError, match="too many pixels"):
        checked_rle({"size": [2**16, 2**16], "counts": [2**32]}, (2**16, 2**16))


TRIANGLE = [0.5, 1, 5, 1, 5, 3]
ODD_POLYGONS = {
    "not finite": [[*TRIANGLE[:5], float("nan")]],
    "far": [TRIANGLE, [*TRIANGLE[:5], 601]],
    "too large a number": [[*TRIANGLE[:5], 10**400]],
    "long border": [[0, 0, 590, 590] * 20],
    "a flag": [[*TRIANGLE[:5], True]],
    "text": [[*TRIANGLE[:5], "3"]],
    "two points": [TRIANGLE, [0, 0, 1, 1]],
    "odd": [[*TRIANGLE, 1]],
    "points": [[0, 0], [4, 0], [4, 3]],
    "flat": TRIANGLE,
    "empty": [],
    "an RLE": compressed_rle(np.eye(4, 6, dtype=bool)),
    "null": None,
}


@pytest.mark.parametrize("odd", ODD_POLYGONS.values(), ids=ODD_POLYGONS)
def test_sound_polygons_are_none_that_a_check_of_each_would_change_or_refuse(odd):
    masks = [[TRIANGLE], odd, [TRIANGLE, TRIANGLE[::-1]]]
    found = sound_polygons(masks, [SIZE] * 3)
    assert 1 not in found and found <= {0, 2}


def test_sound_polygons_are_those_of_usual_datasets():
    masks = [[TRIANGLE], [zigzag(11, 5)] * 2, None, [[0, 0, 4, 0, 4, 4]]]
    assert sound_polygons(masks, [SIZE] * 4) == {0, 1, 3}
    assert all(segmentation(masks[i], SIZE) == (masks[i], None) for i in (0, 1, 3))
    assert sound_polygons([], []) == set()
