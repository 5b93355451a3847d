"""Legends: the classes that are there, by their share, in rows and columns that fit."""

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former.drawing.legend import Entry, draw_legend, legend_entries
from mask2former.drawing.regions import semantic_regions
from mask2former.result import Panoptic, Result
from mask2former.structures import Instances, RunLengthMasks

NAMES, COLORS = ["cat", "dog", "sky"], [(250, 0, 0), (0, 250, 0), (0, 0, 250)]


def fields(legend, color):
    """Return the rows and columns of a legend's pixels in a color."""
    rows, columns = np.nonzero((legend == color).all(2))
    return rows, columns


@pytest.fixture
def result():
    """Return a result with a sky of 5 of 10 pixels, two cats of 1 and 2, and 2 pixels of nothing."""
    ids = np.array([[1, 2, 2, 0, 0], [3, 3, 3, 3, 3]], np.int32)
    segments = [{"id": k, "isthing": c == 0, "category_id": c} for k, c in ((1, 0), (2, 0), (3, 2))]
    semantic = np.array([255, 0, 0, 2])[ids]
    runs = [torch.tensor([[0, 1]]), torch.tensor([[2, 3], [4, 5]])]
    instances = Instances(
        ids.shape,
        pred_masks=RunLengthMasks(ids.shape, runs),
        pred_classes=torch.tensor([0, 0]),
        scores=torch.tensor([0.9, 0.8]),
    )
    image = np.zeros((2, 5, 3), np.uint8)
    return Result(image, NAMES, semantic, Panoptic(ids, segments), instances, COLORS)


def test_entries_are_the_classes_found_the_most_frequent_first():
    labels = np.array([[2, 2, 2, 0], [2, 2, 255, 0]])
    entries = legend_entries(semantic_regions(labels, NAMES, COLORS), NAMES, COLORS, (2, 4), counted=False)
    assert entries == [Entry("sky", COLORS[2], 5 / 8), Entry("cat", COLORS[0], 2 / 8)]


@pytest.mark.parametrize(("task", "objects"), [("semantic", [None, None]), ("panoptic", [1, 2])])
def test_entries_of_a_result(result, task, objects):
    assert result._legend(task) == [
        Entry("sky", COLORS[2], 0.5, objects[0]),
        Entry("cat", COLORS[0], 0.3, objects[1]),
    ]


def test_objects_of_a_class_are_counted(result):
    assert result._legend("instance") == [Entry("cat", COLORS[0], 0.3, 2)]


@pytest.mark.parametrize("letter", [11, 80])
def test_each_entry_has_a_field_in_its_color_above_the_next(letter):
    entries = [Entry("sky", COLORS[2], 0.7), Entry("cat", COLORS[0], 0.0001), Entry("d" * 900, COLORS[1], 0)]
    legend = draw_legend(entries, letter)
    (top, left), (second, _), (third, right) = (fields(legend, entry.color) for entry in entries)
    assert top.max() < second.min() <= second.max() < third.min()
    assert left.min() == right.min()
    assert len(top) == len(second) >= letter**2
    assert legend.shape[1] < 100 * letter  # long names are shortened
    assert not (legend[:, -letter // 2 :] < 255).any()  # nothing is cut off at the right


def test_a_legend_has_columns_if_it_would_be_too_high():
    entries = [Entry(f"class {k}", (k, 200, 0), 0.1) for k in range(30)]
    legend = draw_legend(entries, 12, height=200)
    assert len(legend) == 200
    lefts = [int(fields(legend, entry.color)[1].min()) for entry in entries]
    assert len(set(lefts)) == 4 and lefts == sorted(lefts)
    assert len(draw_legend(entries, 12)) > 30 * 12


def test_an_empty_result_has_an_empty_legend():
    assert (draw_legend([], 12) == 255).all()
    assert draw_legend([], 12, height=50).shape[0] == 50


@pytest.mark.parametrize("task", ["semantic", "instance"])
def test_a_result_is_drawn_with_its_legend_beside_it(result, task):
    drawn = result.draw(task, scale=40, legend=True)
    np.testing.assert_array_equal(drawn[:, :200], result.draw(task, scale=40))
    assert len(fields(drawn[:, 200:], COLORS[0])[0])
    with pytest.raises(ValueError, match="no semantic result"):
        Result(result.image, NAMES, panoptic=result.panoptic).draw_legend("semantic")


def test_a_legend_can_be_saved(result, tmp_path):
    result.save(tmp_path / "legend.png", "legend")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "legend.png")), result.draw_legend())
