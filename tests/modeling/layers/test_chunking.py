"""Chunks cover every row once, in order, fit into the cache, and are used only without gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mask2former.modeling.layers import chunking
from mask2former.modeling.layers.chunking import CHUNK_BYTES, chunk_slices, map_chunks, should_chunk


@given(length=st.integers(0, 300), width=st.integers(1, 10_000), cached=st.integers(1, 50_000))
def test_chunks_cover_all_rows_once_and_fit_into_the_cache(length, width, cached):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunking, "CHUNK_BYTES", cached)
        slices = list(chunk_slices(length, width))
    rows = [row for chunk in slices for row in range(length)[chunk]]
    assert rows == list(range(length))
    sizes = [len(range(length)[chunk]) for chunk in slices]
    assert all(size == 1 or 4 * width * size <= cached for size in sizes)


def test_chunks_hold_twice_the_rows_in_half_precision():
    (whole,) = chunk_slices(1000, CHUNK_BYTES // 4000)
    assert range(1000)[whole] == range(1000)
    assert len(list(chunk_slices(2000, CHUNK_BYTES // 4000))) == 2
    with torch.autocast("cpu", torch.bfloat16):
        assert len(list(chunk_slices(2000, CHUNK_BYTES // 4000))) == 1


def test_map_chunks_computes_each_row(monkeypatch):
    monkeypatch.setattr(chunking, "CHUNK_BYTES", 4 * 7 * 3)  # three rows of width 7
    x, y = torch.randn(10, 7), torch.randn(10, 7)
    seen = []

    def step(a, b):
        seen.append(len(a))
        return a * b

    out = torch.empty(10, 7)
    assert map_chunks(step, 7, out, x, y) is out
    assert torch.equal(out, x * y) and seen == [3, 3, 3, 1]


def test_chunks_are_used_without_gradients_on_a_cpu_unless_compiled():
    x = torch.zeros(1)
    compiled = torch.compile(lambda x: x + (1 if should_chunk(x) else 2), backend="eager", fullgraph=True)
    assert not should_chunk(x)
    with torch.no_grad():
        assert should_chunk(x)
        assert not should_chunk(x.to("meta"))
        assert compiled(x).item() == 2
