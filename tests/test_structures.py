"""Run-length masks against dense ones."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as mask_utils

from mask2former.evaluation.common.rle import encode_masks
from mask2former.structures import Instances, RunLengthMasks, runs


def run_lengths(masks):
    """Pixel by pixel."""
    runs = []
    for mask in masks:
        pixels = [False, *mask.T.flatten().tolist(), False]
        changes = [i for i in range(len(pixels) - 1) if pixels[i] != pixels[i + 1]]
        runs.append(torch.tensor(changes, dtype=torch.int64).view(-1, 2))
    return RunLengthMasks(tuple(masks.shape[1:]), runs)


def draw(count, height, width, share, seed=0):
    return torch.rand(count, height, width, generator=torch.Generator().manual_seed(seed)) < share


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ([[7, 7, 1, 7]], [[0, 2], [2, 3], [3, 4]]),
        ([[7, 7, 1, 1], [0, 0, 0, 2]], [[0, 2], [2, 3], [3, 4]]),
        ([[5]], [[0, 1]]),
        ([[]], []),
    ],
)
def test_runs_end_where_a_value_changes(arrays, expected):
    assert runs(*map(np.array, arrays)).tolist() == expected


@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    count=st.integers(0, 3),
    share=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 999),
)
def test_they_are_the_dense_masks(size, count, share, seed):
    dense = draw(count, *size, share, seed)
    masks = run_lengths(dense)
    assert masks.shape == dense.shape and len(masks) == count
    assert torch.equal(masks.dense(), dense)
    assert torch.equal(masks.areas(), dense.flatten(1).sum(1))
    for mask, mask_of_runs, box in zip(dense, masks, masks.boxes().tolist(), strict=True):
        assert torch.equal(mask_of_runs, mask)
        y, x = mask.nonzero(as_tuple=True)
        assert box == ([x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [0, 0, 0, 0])
    assert encode_masks(masks) == encode_masks(dense)
    for code, mask in zip(encode_masks(masks), dense, strict=True):
        assert torch.equal(torch.from_numpy(mask_utils.decode(code)).bool(), mask)


@pytest.mark.parametrize(
    "index",
    [slice(1, 3), torch.tensor([2, 0, 2]), torch.tensor([True, False, True]), slice(0, 0)],
    ids=["slice", "numbers", "mask", "none"],
)
def test_they_are_chosen_like_a_tensor(index):
    dense = draw(3, 4, 5, 0.5)
    chosen = run_lengths(dense)[index]
    assert torch.equal(chosen.dense(), dense[index])
    assert torch.equal(run_lengths(dense)[2], dense[2])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_as_a_field_of_instances(copied):
    dense = draw(3, 4, 5, 0.5)
    found = copied(Instances((4, 5), pred_masks=run_lengths(dense), scores=torch.tensor([0.9, 0.5, 0.1])))
    assert torch.equal(found[found.scores > 0.3].to("cpu").pred_masks.dense(), dense[:2])
    assert [torch.equal(one.pred_masks[0], mask) for one, mask in zip(found, dense, strict=True)] == [
        True
    ] * 3
    with pytest.raises(ValueError, match="'pred_masks' has 3 entries"):
        Instances((4, 5), scores=torch.zeros(2), pred_masks=run_lengths(dense))
