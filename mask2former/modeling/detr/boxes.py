"""Boxes as DETR predicts and compares them.

A box is its center and size (x, y, width, height), or its corners (left, top, right, bottom), in [0, 1] of
the image without padding.

Shapes: `N` boxes, `*` any shape, `h, w` the image's sides in pixels.
"""

import torch
from torch import Tensor


def corners_of(boxes: Tensor) -> Tensor:
    """Return the corners (*, 4) of boxes (*, 4)."""
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([center - half, center + half], dim=-1)


def boxes_of_masks(masks: Tensor) -> Tensor:
    """Return the tight boxes (N, 4) of boolean masks (N, h, w), none of them empty.

    Right and bottom are the far edges of the last pixels; DETR's code takes their near edges. A mask that a
    crop has cut has the box of what is left.
    """
    (left, right), (top, bottom) = _span(masks.any(1)), _span(masks.any(2))
    return torch.stack([left + right, top + bottom, 2 * (right - left), 2 * (bottom - top)], dim=1) / 2


def _span(hit: Tensor) -> tuple[Tensor, Tensor]:
    """Return begin and end (N,), in [0, 1], of the hit positions (N, s) of an axis."""
    length = hit.shape[1]
    begin, end = hit.int().argmax(1), length - hit.flip(1).int().argmax(1)
    return begin / length, end / length


def generalized_iou(corners: Tensor, others: Tensor) -> Tensor:
    """Return the generalized IoU (*), in (-1, 1], of boxes with corners (*, 4) that broadcast.

    It is the IoU, minus the share of the smallest box around both that neither covers ("Generalized
    Intersection over Union", CVPR 2019).
    """
    low, high = corners.split(2, dim=-1)
    other_low, other_high = others.split(2, dim=-1)
    intersection = _area(torch.maximum(low, other_low), torch.minimum(high, other_high))
    union = _area(low, high) + _area(other_low, other_high) - intersection
    hull = _area(torch.minimum(low, other_low), torch.maximum(high, other_high))
    smallest = torch.finfo(union.dtype).tiny  # for boxes without area
    return intersection / union.clamp(min=smallest) - (hull - union) / hull.clamp(min=smallest)


def _area(low: Tensor, high: Tensor) -> Tensor:
    width, height = (high - low).clamp(min=0).unbind(-1)
    return width * height
