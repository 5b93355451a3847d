"""Boxes against versions that look at one number at a time."""

import pytest
import torch

from mask2former.modeling.detr.boxes import boxes_of_masks, corners_of, generalized_iou


def slow_giou(box, other):
    """Generalized IoU of two boxes given by corners, in Python's floats."""

    def area(left, top, right, bottom):
        return max(right - left, 0) * max(bottom - top, 0)

    pairs = list(zip(box, other, strict=True))
    inside = [max(a, b) if i < 2 else min(a, b) for i, (a, b) in enumerate(pairs)]
    around = [min(a, b) if i < 2 else max(a, b) for i, (a, b) in enumerate(pairs)]
    union = area(*box) + area(*other) - area(*inside)
    return area(*inside) / union - (area(*around) - union) / area(*around)


def test_generalized_iou_of_all_pairs_equals_the_slow_version():
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(40, 4, generator=generator, dtype=torch.float64) * 0.9 + 0.05
    corners = corners_of(boxes)
    found = generalized_iou(corners[:, None], corners)
    for i, box in enumerate(corners.tolist()):
        for j, other in enumerate(corners.tolist()):
            assert found[i, j].item() == pytest.approx(slow_giou(box, other), abs=1e-12)
    assert (found.diagonal() - 1).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ([0.0, 0.0, 2.0, 2.0], 1.0),  # itself
        ([0.0, 0.0, 1.0, 2.0], 0.5),  # the left half
        ([2.0, 0.0, 4.0, 2.0], 0.0),  # beside it
        ([4.0, 0.0, 6.0, 2.0], -1 / 3),  # as far away as it is wide
        ([1.0, 1.0, 3.0, 3.0], 1 / 7 - 2 / 9),  # across a corner
    ],
)
def test_generalized_iou_by_hand(other, expected):
    box = torch.tensor([0.0, 0.0, 2.0, 2.0])
    assert generalized_iou(box, torch.tensor(other)).item() == pytest.approx(expected)


def test_boxes_without_area_have_finite_values_and_gradients():
    boxes = torch.zeros(2, 4, requires_grad=True)
    generalized_iou(corners_of(boxes), torch.zeros(2, 4)).sum().backward()
    assert boxes.grad is not None and boxes.grad.isfinite().all()


def test_corners_by_hand():
    assert corners_of(torch.tensor([0.5, 0.4, 0.2, 0.6])).tolist() == pytest.approx([0.4, 0.1, 0.6, 0.7])


def test_boxes_of_masks_equal_the_slow_version():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(50, 13, 17, generator=generator) < 0.02
    masks = masks[masks.flatten(1).any(1)]
    for mask, corners in zip(masks, corners_of(boxes_of_masks(masks)).tolist(), strict=True):
        cells = mask.nonzero().tolist()
        rows, columns = zip(*cells, strict=True)
        tight = [min(columns) / 17, min(rows) / 13, (max(columns) + 1) / 17, (max(rows) + 1) / 13]
        assert corners == pytest.approx(tight)


def test_a_full_mask_and_no_mask():
    assert boxes_of_masks(torch.ones(1, 5, 7, dtype=torch.bool)).tolist() == [[0.5, 0.5, 1.0, 1.0]]
    assert boxes_of_masks(torch.zeros(0, 5, 7, dtype=torch.bool)).shape == (0, 4)
