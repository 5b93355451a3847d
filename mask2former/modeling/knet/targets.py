"""Targets as K-Net's loss reads them: on the grid of the masks, one for each stuff class and each thing.

Shapes: `n` targets of an image, `H, W` the padded image's sides, `h, w` those of the features, at stride 8.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mask2former.modeling.loss.dense import PIXELS_AT_ONCE, pad_masks
from mask2former.modeling.loss.pixel_criterion import label_map
from mask2former.structures import Instances

Size = tuple[int, int]


class Targets(NamedTuple):
    """Targets of an image at stride 4: stuff, one target a class in their order, then things.

    Masks (n, 2h, 2w) are float, in [0, 1]; classes (n,).
    """

    masks: Tensor
    classes: Tensor
    num_stuff: int


def reduce_targets(target: Instances, thing_ids: Sequence[int], image_size: Size, mask_size: Size) -> Targets:
    """Return the targets of an image, padded to `image_size`, on the grid of masks of `mask_size`."""
    classes = target.gt_classes
    is_thing = torch.isin(classes, classes.new_tensor(thing_ids))
    stuff = classes[~is_thing].unique()
    merged = [target.gt_masks[classes == label].any(0, keepdim=True) for label in stuff]
    masks = reduce_smoothly(torch.cat([*merged, target.gt_masks[is_thing]]), image_size, mask_size)
    return Targets(masks, torch.cat([stuff, classes[is_thing]]), len(stuff))


def reduce_smoothly(masks: Tensor, image_size: Size, mask_size: Size) -> Tensor:
    """Return boolean masks (n, H, W), unpadded, interpolated bilinearly on a grid: (n, 2h, 2w) in [0, 1]."""
    step = max(1, PIXELS_AT_ONCE // (image_size[0] * image_size[1]))
    parts = [
        F.interpolate(pad_masks(some, image_size)[:, None].float(), mask_size, mode="bilinear")
        for some in masks.split(step)
    ]
    return torch.cat(parts).squeeze(1)


def paint(masks: Tensor, numbers: Tensor) -> Tensor:
    """Return the number of the last mask (n, 2h, 2w) that touches each cell: (2h, 2w).

    Numbers are (n,) int64; cells without a mask are IGNORED.
    """
    size = (masks.shape[1], masks.shape[2])
    return label_map(Instances(size, gt_classes=numbers, gt_masks=masks > 0), size)
