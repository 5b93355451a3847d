"""The sine encoding against its formula, cell by cell."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mask2former.modeling.layers.position import sine_position


def slow(height, width, channels):
    half = channels // 2
    table = torch.zeros(height * width, channels, dtype=torch.float64)
    for row in range(height):
        for column in range(width):
            y = (row + 1) / (height + 1e-6) * 2 * math.pi
            x = (column + 1) / (width + 1e-6) * 2 * math.pi
            for i in range(half):
                frequency = 10000 ** (-2 * (i // 2) / half)
                wave = math.cos if i % 2 else math.sin
                table[row * width + column, i] = wave(y * frequency)
                table[row * width + column, half + i] = wave(x * frequency)
    return table


@settings(max_examples=20)
@given(height=st.integers(1, 9), width=st.integers(1, 9), channels=st.sampled_from([4, 8, 36, 64]))
def test_equals_the_formula(height, width, channels):
    table = sine_position((height, width), channels)
    assert table.dtype == torch.float32
    torch.testing.assert_close(table.double(), slow(height, width, channels), atol=2e-6, rtol=0)


def test_channels_must_split_into_sines_and_cosines_of_two_axes():
    with pytest.raises(ValueError, match="multiple of 4 channels, not 6"):
        sine_position((2, 2), 6)
