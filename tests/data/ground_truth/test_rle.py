"""Compressed run lengths: the pixels of valid codes, and invalid codes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from synthetic_coco import compressed_rle

from mask2former.data.ground_truth.rle import count_pixels


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))), st.integers(1, 40))
def test_a_code_has_as_many_pixels_as_its_mask(mask, scale):
    mask = np.kron(mask, np.ones((scale, 1), bool))  # runs of one character and of several
    code = compressed_rle(mask)["counts"]
    assert count_pixels(code) == count_pixels(code.encode()) == mask.size


@pytest.mark.parametrize("code", ["", "P", "ab", "00O", "\u00e9", "  "])
def test_invalid_codes_are_refused(code):
    with pytest.raises(ValueError, match="the counts"):
        count_pixels(code)
