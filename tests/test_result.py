"""A result in the interpreter and in a notebook, and names of other libraries."""

import copy
import dataclasses
import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image, ImageShow

from mask2former.result import NAMES_HERE, Panoptic, Result
from mask2former.structures import Instances, RunLengthMasks


@pytest.fixture
def result():
    ids = np.array([[1, 1, 2], [0, 2, 2]], np.int32)
    segments = [{"id": 1, "isthing": True, "category_id": 0}, {"id": 2, "isthing": False, "category_id": 1}]
    found = Instances(
        (2, 3),
        pred_masks=RunLengthMasks((2, 3), [torch.tensor([[0, 1]])]),
        pred_boxes=torch.tensor([[0.0, 0.0, 1.0, 1.0]]),
        scores=torch.tensor([0.9]),
        pred_classes=torch.tensor([0]),
    )
    image = np.zeros((2, 3, 3), np.uint8)
    return Result(image, ["cup", "table"], np.minimum(ids, 1), Panoptic(ids, segments), found)


def test_repr_is_one_line(result):
    assert repr(result) == (
        "Result(2x3 pixels, panoptic: 2 segments, instance: 1 instances, semantic: 2 classes)"
    )
    assert repr(Result(result.image, ["cup"])) == "Result(2x3 pixels)"
    assert repr(result.panoptic) == "Panoptic(ids of (2, 3), 2 segments)"


def test_results_are_equal_if_all_their_values_are(result):
    other = copy.deepcopy(result)
    assert (result == other) is True and (result != other) is False
    assert (result.panoptic == other.panoptic) is True and (result.instances == other.instances) is True
    assert [result].index(other) == 0 and other in [None, result]
    assert (result == "cup") is False and (result.panoptic == result.semantic) is False


CHANGES = {  # of a copied result
    "image": lambda r: r.image.__setitem__((0, 0, 0), 1),
    "semantic": lambda r: r.semantic.__setitem__((0, 0), 0),
    "segment": lambda r: r.panoptic.ids.__setitem__((0, 0), 2),
    "segments": lambda r: r.panoptic.segments.pop(),
    "score": lambda r: r.instances.scores.fill_(0.8),
    "field": lambda r: r.instances.set("track", [5]),
    "mask": lambda r: r.instances.pred_masks.runs[0].add_(1),
    "masks": lambda r: r.instances.pred_masks.runs.append(torch.tensor([[3, 4]])),
    "names": lambda r: r.class_names.append("box"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_results_with_a_different_value_are_not_equal(result, change):
    other = copy.deepcopy(result)
    CHANGES[change](other)
    assert (result == other) is False and (result != other) is True
    assert (result == dataclasses.replace(result, semantic=None)) is False


def test_a_notebook_shows_the_overlay(result):
    shown = np.asarray(Image.open(io.BytesIO(result._repr_png_())))
    np.testing.assert_array_equal(shown, result.draw())


def test_a_path_to_save_to_may_begin_with_the_home_folder(result, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    result.save("~/new/overlay.png")
    assert Image.open(tmp_path / "new" / "overlay.png").size == (3, 2)


def test_show_opens_the_viewer_or_says_that_there_is_none(result, monkeypatch):
    shown = []
    monkeypatch.setattr(ImageShow, "_viewers", [])
    with pytest.raises(RuntimeError, match=r'no image viewer here; type result.save\("overlay.png"\)'):
        result.show()
    monkeypatch.setattr(ImageShow, "show", lambda image: shown.append(np.asarray(image)) or True)
    result.show("semantic")
    np.testing.assert_array_equal(shown, [result.draw("semantic")])


@pytest.mark.parametrize(("name", "here"), [*NAMES_HERE.items(), ("instances", "instances")])
def test_names_of_other_libraries_are_errors_with_the_name_here(result, name, here):
    assert eval(f"result.{here}", {"result": result}) is not None
    if name != here:
        with pytest.raises(AttributeError) as error:
            getattr(result, name)
        assert str(error.value) == f"a Result has no '{name}'; type result.{here}"
    with pytest.raises(TypeError) as error:
        result[name]
    assert str(error.value) == f"a Result has attributes, not keys; type result.{here}"


def test_other_names_are_errors_with_the_fields(result):
    for access in (lambda: result.depth, lambda: result["depth"]):
        with pytest.raises(
            (AttributeError, TypeError), match="it has image, class_names, semantic, panoptic"
        ):
            access()
    with pytest.raises(TypeError, match=r"one image; predictor\(\[image\]\) gives a list"):
        result[0]
    assert pickle.loads(pickle.dumps(result)).class_names == result.class_names


@pytest.mark.parametrize(
    ("call", "name", "right"),
    [
        ("draw", "instances", "instance"),
        ("count", "panoptic_seg", "panoptic"),
        ("draw", "sem_seg", "semantic"),
    ],
)
def test_another_name_of_a_task_is_an_error_that_says_the_right_one(result, call, name, right):
    with pytest.raises(ValueError, match=rf'no {name} result; there is: .*; type "{right}"$'):
        getattr(result, call)(name)


def test_another_name_of_what_to_save_is_an_error_that_says_the_right_one(result, tmp_path):
    with pytest.raises(ValueError, match=r"cannot save 'instance'; .*; type \"instances\"$"):
        result.save(tmp_path / "x.json", "instance")


@pytest.mark.parametrize(("name", "here"), [("segments_info", "segments"), ("segmentation", "ids")])
def test_other_names_of_panoptic_results_name_the_right_one(name, here):
    panoptic = Panoptic(np.zeros((2, 2), np.int32), [])
    with pytest.raises(AttributeError, match=f"Panoptic has no '{name}'; type .{here}"):
        getattr(panoptic, name)
    with pytest.raises(AttributeError, match="it has ids, segments"):
        _ = panoptic.nothing
