import pytest
import torch
from dense_resize import resize_whole
from hypothesis import given, settings
from hypothesis import strategies as st

from mask2former.modeling.postprocessing.tiles import (
    Tile,
    contenders,
    over_tiles,
    pixels_within,
    sliding_max,
    tiles_within,
    to_output,
)
from mask2former.modeling.predictions import Sizes

CPU, GPU = torch.device("cpu"), torch.device("cuda")
side = st.integers(1, 40)


def cut(size, height, width):
    return [
        Tile(range(size[0])[top : top + height], range(size[1])[left : left + width])
        for top in range(0, size[0], height)
        for left in range(0, size[1], width)
    ]


@settings(max_examples=60)
@given(
    image=st.tuples(side, side),
    output=st.tuples(side, side),
    stride=st.sampled_from([1, 4, 8]),
    tile=st.tuples(side, side),
    seed=st.integers(0, 99),
)
def test_tiles_equal_the_whole_resized_map_and_lie_within_their_bounds(image, output, stride, tile, seed):
    padded = tuple(-(-length // 8) * 8 for length in image)
    sizes = Sizes(padded, image, output)
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(2, padded[0] // stride, padded[1] // stride, generator=generator)
    resizing = to_output(maps, sizes)
    found = torch.empty(2, *output)
    for part in cut(output, *tile):
        source = resizing.source(maps, part)
        part.of(found)[:] = resizing.resize(source, part)
        lower, upper = resizing.bounds(source)
        reached = part.of(found).flatten(1)
        assert (reached.amin(1) >= lower.flatten(1).amin(1) - 1e-5).all()
        assert (reached.amax(1) <= upper.flatten(1).amax(1) + 1e-5).all()
    assert torch.allclose(found, resize_whole(maps, sizes), atol=1e-5)


def test_tiles_of_a_large_image_equal_the_whole():
    sizes = Sizes((1216, 32), (1201, 30), (1999, 45))
    maps = torch.randn(1, 304, 8)
    tile = Tile(range(1900, 1999), range(45))
    resizing = to_output(maps, sizes)
    found = resizing.resize(resizing.source(maps, tile), tile)
    assert torch.allclose(found, resize_whole(maps, sizes)[:, 1900:], atol=1e-4)


def test_each_pixel_lies_within_the_bounds_of_one_neighborhood():
    # A single peak: neighborhoods away from it are bounded by 0, the pixels between are made of it
    maps = torch.zeros(1, 8, 8)
    maps[0, 4, 4] = 1
    resizing = to_output(maps, Sizes((32, 32), (32, 32), (120, 120)))
    tile = Tile(range(120), range(120))
    lower, upper = resizing.bounds(maps)
    assert lower.max() == 0 and upper.max() == 1
    assert (upper > 0).sum() == resizing.rows.reach * resizing.columns.reach == 9
    assert resizing.resize(maps, tile).count_nonzero() > 0


def test_sliding_max():
    maps = torch.tensor([[[1.0, 2.0, 0.0], [0.0, 5.0, 1.0]]])
    assert sliding_max(maps, (1, 2)).tolist() == [[[2, 2], [5, 5]]]
    assert sliding_max(maps, (2, 1)).tolist() == [[[1, 5, 1]]]


def test_contenders_are_the_maps_that_can_be_the_largest():
    lower = torch.tensor([[0.5, 0.1], [0.0, 0.0], [0.0, 0.0]])
    upper = torch.tensor([[0.6, 0.2], [0.4, 0.3], [0.4, 0.05]])
    assert contenders(lower, upper).tolist() == [True, True, False]
    same = torch.full((2, 1), 0.3)
    assert contenders(same, same).tolist() == [True, True]
    assert contenders(torch.zeros(2, 1), torch.zeros(2, 1)).all()
    negative = torch.tensor([[-5.0], [-5.0001], [-6.0]])
    assert contenders(negative, negative).tolist() == [True, True, False]
    assert contenders(torch.tensor([[torch.nan], [0.5]]), torch.tensor([[torch.nan], [0.6]])).all()


@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize("budget", [1, 4000, 10**9])
def test_tiles_cover_the_output_once_within_the_budget(device, budget):
    tiles = tiles_within(budget, (37, 53), 10, device)
    count = torch.zeros(37, 53)
    for tile in tiles:
        tile.of(count)[:] += 1
        assert tile.area == 1 or tile.area * 4 * 10 <= budget
    assert (count == 1).all()


def test_tile_size_follows_the_budget_and_on_a_cpu_the_cache():
    assert pixels_within(1, 10, GPU) == 1
    few, many = pixels_within(10**6, 20, GPU), pixels_within(10**6, 10, GPU)
    assert 1 < few < many <= 2 * few + 1
    assert pixels_within(10**9, 1, CPU) < pixels_within(10**9, 1, GPU)
    assert pixels_within(1000, 1, CPU) == pixels_within(1000, 1, GPU)
    assert tiles_within(10**9, (100, 80), 10, GPU) == [Tile(range(100), range(80))]


TILES = cut((10, 80), 5, 80)


def failing_above(columns, error):
    """Return work that fails on tiles of more columns, and the list of tiles on which it succeeded."""
    done = []

    def work(tile):
        if len(tile.columns) > columns:
            raise error
        done.append(tile)
        return tile.area

    return work, done


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_halves_the_tile(error):
    work, done = failing_above(7, error)
    assert sum(over_tiles(work, TILES)) == 800
    starts = [(tile.rows.start, tile.columns.start) for tile in done]
    assert starts == sorted(set(starts))
    assert max(len(tile.columns) for tile in done) <= 7


def test_a_column_that_does_not_fit_is_an_error():
    with pytest.raises(RuntimeError, match="out of memory"):
        over_tiles(failing_above(0, RuntimeError("out of memory"))[0], TILES)


def test_other_errors_are_raised():
    work, done = failing_above(50, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        over_tiles(work, TILES)
    assert not done
