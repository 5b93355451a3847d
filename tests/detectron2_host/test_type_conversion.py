"""Conversion of our types to Detectron2's and back."""

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, PolygonMasks
from detectron2.structures import Instances as HostInstances

from mask2former.detectron2_host.type_conversion import instances_from_detectron2, instances_to_detectron2
from mask2former.structures import Instances, RunLengthMasks

SQUARE = torch.zeros(1, 8, 10, dtype=torch.bool)
SQUARE[0, 2:5, 3:7] = True
CLASSES = torch.tensor([4])


def test_predictions_keep_their_values():
    scores, boxes = torch.tensor([0.25]), torch.tensor([[3.0, 2.0, 7.0, 5.0]])
    ours = Instances((8, 10), pred_masks=SQUARE, pred_boxes=boxes, scores=scores, pred_classes=CLASSES)
    theirs = instances_to_detectron2(ours)
    assert theirs.image_size == (8, 10) and isinstance(theirs.pred_boxes, Boxes)
    assert torch.equal(theirs.pred_masks, SQUARE) and torch.equal(theirs.pred_boxes.tensor, boxes)
    assert theirs.pred_boxes.tensor.tolist() == BitMasks(SQUARE).get_bounding_boxes().tensor.tolist()
    assert theirs.scores.item() == 0.25 and theirs.pred_classes.item() == 4


def test_run_length_masks_become_dense():
    runs = RunLengthMasks((4, 3), [torch.tensor([[1, 3], [8, 9]])])  # down the columns
    theirs = instances_to_detectron2(Instances((4, 3), pred_masks=runs))
    assert theirs.pred_masks.int().tolist() == [[[0, 0, 1], [1, 0, 0], [1, 0, 0], [0, 0, 0]]]


def test_targets_are_equal_after_conversion_and_back():
    theirs = instances_to_detectron2(Instances((8, 10), gt_classes=CLASSES, gt_masks=SQUARE))
    assert isinstance(theirs.gt_masks, BitMasks) and theirs.gt_boxes.tensor.tolist() == [[3, 2, 7, 5]]
    back = instances_from_detectron2(theirs)
    assert torch.equal(back.gt_masks, SQUARE) and torch.equal(back.gt_classes, CLASSES)


def test_targets_with_each_kind_of_mask():
    corners = np.array([3, 2, 7, 2, 7, 5, 3, 5], dtype=np.float64)
    for masks in (BitMasks(SQUARE), PolygonMasks([[corners]]), SQUARE, SQUARE.float()):
        back = instances_from_detectron2(HostInstances((8, 10), gt_classes=CLASSES, gt_masks=masks))
        assert back.gt_masks.dtype == torch.bool and torch.equal(back.gt_masks, SQUARE)


def test_objects_without_masks_are_an_error():
    with pytest.raises(ValueError, match=r"MODEL\.MASK_ON"):
        instances_from_detectron2(HostInstances((8, 10), gt_classes=CLASSES))


def test_no_objects_give_no_masks():
    empty = torch.zeros(0, dtype=torch.int64)
    for fields in ({}, {"gt_classes": empty}, {"gt_classes": empty, "gt_masks": PolygonMasks([])}):
        back = instances_from_detectron2(HostInstances((8, 10), **fields))
        assert back.gt_masks.shape == (0, 8, 10) and back.gt_classes.shape == (0,)
    there = instances_to_detectron2(Instances((8, 10), gt_classes=empty, gt_masks=SQUARE[:0]))
    assert there.gt_boxes.tensor.shape == (0, 4)
