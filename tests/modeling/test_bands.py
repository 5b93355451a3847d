import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from whole_resize import resize_whole

from mask2former.modeling.bands import Sizes, over_bands, resize_band, rows_within

side = st.integers(1, 40)


@settings(max_examples=60)
@given(
    image=st.tuples(side, side),
    output=st.tuples(side, side),
    step=st.integers(1, 50),
    seed=st.integers(0, 99),
)
def test_bands_together_are_the_whole(image, output, step, seed):
    padded = tuple(-(-length // 8) * 8 for length in image)
    sizes = Sizes(padded, image, output)
    maps = torch.randn(2, padded[0] // 4, padded[1] // 4, generator=torch.Generator().manual_seed(seed))
    starts = range(0, output[0], step)
    bands = [resize_band(maps, sizes, range(start, min(start + step, output[0]))) for start in starts]
    assert torch.allclose(torch.cat(bands, dim=1), resize_whole(maps, sizes), atol=1e-5)


def test_a_large_picture_is_placed_as_the_whole():
    sizes = Sizes((1216, 32), (1201, 30), (1999, 45))
    maps = torch.randn(1, 304, 8)
    band = resize_band(maps, sizes, range(1900, 1999))
    assert torch.allclose(band, resize_whole(maps, sizes)[:, 1900:], atol=1e-4)


SIZES = Sizes((64, 64), (60, 50), (100, 80))


def test_the_budget_sets_the_rows():
    assert rows_within(10**9, SIZES, 10) >= 100
    assert rows_within(1, SIZES, 10) == 1
    few, many = rows_within(10**6, SIZES, 20), rows_within(10**6, SIZES, 10)
    assert 1 < few < many < 2 * few + 2


def failing_above(limit, error):
    """Work that runs out of memory on more than `limit` rows, and records the rows it did."""
    done = []

    def work(rows):
        if len(rows) > limit:
            raise error
        done.extend(rows)
        return len(rows)

    return work, done


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_halves_the_band(error):
    work, done = failing_above(7, error)
    results = over_bands(work, SIZES, 1, 10**9)
    assert done == list(range(100))
    assert sum(results) == 100 and max(results) <= 7


def test_a_row_that_does_not_fit_is_an_error():
    with pytest.raises(RuntimeError, match="out of memory"):
        over_bands(failing_above(0, RuntimeError("out of memory"))[0], SIZES, 1, 10**9)


def test_other_errors_pass():
    work, done = failing_above(50, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        over_bands(work, SIZES, 1, 10**9)
    assert not done
