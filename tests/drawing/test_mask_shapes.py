"""Shapes of masks: the same from label maps, runs and dense masks, and enlarged."""

import numpy as np
import pytest
import torch
from noisy_labels import noisy_labels

from mask2former.drawing import shapes as shapes_module
from mask2former.drawing.shapes import enlarged, label_shapes, mask_shape, run_length_shapes
from mask2former.structures import RunLengthMasks, runs


def square_mask(side, top, left, size):
    mask = np.zeros((side, side), bool)
    mask[top : top + size, left : left + size] = True
    return mask


@pytest.fixture
def strips(monkeypatch):
    """Make strips of a few rows, so that small images have several."""
    monkeypatch.setattr(shapes_module, "STRIP_PIXELS", 200)


def test_shapes_of_labels_runs_and_masks_are_the_same(strips):
    labels = noisy_labels(70, 50)
    values = [0, 1, 2, 3, 4, 9]
    coded = []
    for value in values:
        flat = (labels == value).T.ravel()
        coded.append(torch.from_numpy(runs(flat)[flat[runs(flat)[:, 0]]]))
    by_kind = (
        label_shapes(labels, values),
        run_length_shapes(RunLengthMasks(labels.shape, coded)),
        [mask_shape(labels == value) for value in values],
    )
    for value, shapes in zip(values, zip(*by_kind, strict=True), strict=True):
        mask = labels == value
        for shape in shapes:
            assert shape.area == mask.sum() and shape.box == shapes[2].box
            assert (shape.box is None) == (value == 2)
            for box in ((0, 0, 50, 70), (11, 20, 31, 64), (45, 60, 55, 75), (3, 4, 4, 5)):
                left, top, right, bottom = box
                np.testing.assert_array_equal(shape.inside(box), mask[top:bottom, left:right])


def test_an_enlarged_shape_repeats_the_pixels():
    mask = square_mask(9, 2, 3, 4) & ~square_mask(9, 3, 4, 1)
    shape, expected = enlarged(mask_shape(mask), 3), mask.repeat(3, 0).repeat(3, 1)
    assert shape.area == expected.sum() and shape.box == mask_shape(expected).box
    np.testing.assert_array_equal(shape.inside((0, 0, 27, 27)), expected)
    np.testing.assert_array_equal(shape.inside((10, 7, 20, 27)), expected[7:27, 10:20])
