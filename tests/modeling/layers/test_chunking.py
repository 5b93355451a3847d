"""Working in pieces: every row once, in order, within the cache, and only where no gradients are wanted."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mask2former.modeling.layers import chunking as pieces
from mask2former.modeling.layers.chunking import in_pieces, pieces_pay


@given(length=st.integers(0, 300), width=st.integers(1, 10_000), cached=st.integers(1, 50_000))
def test_pieces_cover_all_rows_once_and_fit(length, width, cached):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "CACHED", cached)
        slices = list(pieces.pieces(length, width))
    rows = [row for piece in slices for row in range(length)[piece]]
    assert rows == list(range(length))
    sizes = [len(range(length)[piece]) for piece in slices]
    assert all(size == 1 or 4 * width * size <= cached for size in sizes)


def test_pieces_hold_twice_the_rows_in_half_precision():
    (whole,) = pieces.pieces(1000, pieces.CACHED // 4000)
    assert range(1000)[whole] == range(1000)
    assert len(list(pieces.pieces(2000, pieces.CACHED // 4000))) == 2
    with torch.autocast("cpu", torch.bfloat16):
        assert len(list(pieces.pieces(2000, pieces.CACHED // 4000))) == 1


def test_in_pieces_fills_each_row_from_its_own(monkeypatch):
    monkeypatch.setattr(pieces, "CACHED", 4 * 7 * 3)  # three rows of width 7
    x, y = torch.randn(10, 7), torch.randn(10, 7)
    seen = []

    def step(a, b):
        seen.append(len(a))
        return a * b

    out = torch.empty(10, 7)
    assert in_pieces(step, 7, out, x, y) is out
    assert torch.equal(out, x * y) and seen == [3, 3, 3, 1]


def test_pieces_pay_without_gradients_on_a_cpu():
    x = torch.zeros(1)
    assert not pieces_pay(x)
    with torch.no_grad():
        assert pieces_pay(x)
        assert not pieces_pay(x.to("meta"))


def test_a_compiler_sees_no_pieces():
    @torch.compile(backend="eager", fullgraph=True)
    def flagged(x):
        return x + (1 if pieces_pay(x) else 2)

    with torch.no_grad():
        assert flagged(torch.zeros(1)).item() == 2
