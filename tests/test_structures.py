"""Run-length masks against dense ones, and the fields of instances."""

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
    left = seed % size[1]
    for i, mask in enumerate(dense):
        assert torch.equal(masks.columns(i, left, size[1]), mask[:, left:])
        assert torch.equal(masks.columns(i, 0, left + 1), mask[:, : left + 1])
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


def test_masks_become_an_array_and_other_attributes_name_dense():
    dense = draw(2, 4, 5, 0.5)
    assert np.array_equal(np.asarray(run_lengths(dense)), dense)
    assert repr(run_lengths(dense)) == "RunLengthMasks(2 of (4, 5))"
    assert np.asarray(run_lengths(dense), dtype=np.uint8).sum() == dense.sum()
    assert torch.equal(run_lengths(dense)[np.int64(1)], dense[1])
    with pytest.raises(AttributeError, match=r"no attribute 'numpy'.*`\.dense\(\)`"):
        _ = run_lengths(dense).numpy()


def example():
    found = Instances((4, 5), pred_masks=run_lengths(draw(3, 4, 5, 0.5)))
    found.scores = torch.tensor([0.1, 0.9, 0.5])
    found.names = ["a", "b", "c"]
    found.track = np.arange(3)
    return found


def test_an_assigned_field_is_like_any_other():
    found = example()
    found.scores = found.scores * 2
    assert found.has("track") and "track" in found.get_fields() and "track" in dir(found)
    assert torch.equal(found[:1].scores, torch.tensor([0.2])) and found.get("names") == ["a", "b", "c"]
    assert [one.names for one in found] == [["a"], ["b"], ["c"]]
    assert found.to("cpu").track.tolist() == [0, 1, 2]
    found.remove("track")
    del found.names
    assert list(found.get_fields()) == ["pred_masks", "scores"]
    with pytest.raises(AttributeError, match="no field 'track' among"):
        found.remove("track")


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (1, [1]),
        (-1, [2]),
        (torch.tensor(1), [1]),
        (np.int64(2), [2]),
        ([2, 0], [2, 0]),
        ([], []),
        ([False, True, True], [1, 2]),
        (np.array([2, 1]), [2, 1]),
        (torch.tensor([True, False, True]), [0, 2]),
        (torch.tensor([2, 0]), [2, 0]),
        (slice(None, None, 2), [0, 2]),
    ],
    ids=repr,
)
def test_every_kind_of_field_is_indexed_alike(index, expected):
    found = example()
    chosen = found[index]
    assert chosen.track.tolist() == expected
    assert chosen.names == ["abc"[i] for i in expected]
    assert torch.equal(chosen.scores, found.scores[expected])
    assert torch.equal(chosen.pred_masks.dense(), found.pred_masks.dense()[expected])


def test_cat_joins_every_kind_of_field():
    found = example()
    joined = Instances.cat([found[2], found[:2]])
    assert joined.names == ["c", "a", "b"] and joined.track.tolist() == [2, 0, 1]
    assert torch.equal(joined.scores, found[[2, 0, 1]].scores)
    assert torch.equal(joined.pred_masks.dense(), found[[2, 0, 1]].pred_masks.dense())
    for parts in ([], [found, Instances((5, 4))], [found, Instances((4, 5), scores=found.scores)]):
        with pytest.raises(ValueError, match="of one image size and the same fields"):
            Instances.cat(parts)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("track", torch.arange(2), "'track' has 2 entries, the other fields have 3"),
        ("scores", torch.arange(4), "'scores' has 4 entries"),
        ("score", 0.5, "'score' is 0.5; it must have one entry per instance"),
        ("score", torch.tensor(0.5), "it must have one entry per instance"),
        ("to", [1, 2, 3], "'to' cannot be a field"),
        ("image_size", (4, 5), "'image_size' cannot be a field"),
    ],
)
def test_a_wrong_field_is_an_error(name, value, message):
    with pytest.raises(ValueError, match=message):
        setattr(example(), name, value)


def test_an_index_out_of_range_is_an_error():
    with pytest.raises(IndexError, match="no instance 3 among 3"):
        example()[3]


def test_boxes_are_a_tensor_that_has_detectron2s_attribute():
    masks = RunLengthMasks((4, 5), [torch.tensor([[0, 2]]), torch.tensor([[5, 7]])])
    found = Instances((4, 5), pred_boxes=masks.boxes(), scores=torch.tensor([0.2, 0.9]))
    for kept in (found[found.scores > 0.5], found[1], Instances.cat([found[1:], found[:0]]).to("cpu")):
        assert type(kept.pred_boxes.tensor) is torch.Tensor
        assert kept.pred_boxes.tensor.tolist() == kept.pred_boxes.tolist() == [[1, 1, 2, 3]]


@pytest.mark.parametrize(
    ("name", "here"), [("boxes", "pred_boxes"), ("bboxes", "pred_boxes"), ("labels", "pred_classes")]
)
def test_other_names_of_fields_name_the_right_one(name, here):
    instances = Instances((4, 4), pred_boxes=torch.zeros(1, 4), pred_classes=torch.zeros(1))
    with pytest.raises(AttributeError, match=f"type .{here}$"):
        getattr(instances, name)
