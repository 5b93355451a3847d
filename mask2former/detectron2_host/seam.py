"""The seam: our types and Detectron2's, into each other.

Shapes: `N` instances of one image, `H, W` the image's sides in pixels.
"""

from collections.abc import Mapping
from typing import Any

import torch
from detectron2.structures import BitMasks, Boxes, PolygonMasks
from detectron2.structures import Instances as HostInstances
from torch import Tensor

from mask2former.structures import Instances, RunLengthMasks

WRAPPERS = {"pred_boxes": Boxes, "gt_boxes": Boxes, "gt_masks": BitMasks}


def instances_to_detectron2(instances: Instances) -> HostInstances:
    """The same fields as Detectron2 has them.

    Boxes are `Boxes`, true masks `BitMasks`, predicted ones a tensor (N, H, W) bool. Targets gain
    `gt_boxes`, which Detectron2's models train on.
    """
    fields = dict(instances.get_fields())
    for name, value in fields.items():
        value = value.dense() if isinstance(value, RunLengthMasks) else value
        fields[name] = WRAPPERS[name](value) if name in WRAPPERS else value
    if "gt_masks" in fields and "gt_boxes" not in fields:
        fields["gt_boxes"] = fields["gt_masks"].get_bounding_boxes()
    return HostInstances(instances.image_size, **fields)


def instances_from_detectron2(instances: HostInstances) -> Instances:
    """Targets from Detectron2's: classes and masks (N, H, W) bool, of polygons, bitmaps or a tensor.

    Of an image without objects Detectron2 leaves the masks out, and sometimes the classes.

    Raises:
        ValueError: there are objects, but no masks of them.
    """
    height, width = instances.image_size
    classes = instances.gt_classes if instances.has("gt_classes") else torch.zeros(0, dtype=torch.int64)
    if len(classes) and not instances.has("gt_masks"):
        raise ValueError("targets have boxes but no masks; Detectron2's mapper needs MODEL.MASK_ON True")
    masks = instances.gt_masks if len(classes) else torch.zeros(0, height, width)
    return Instances((height, width), gt_classes=classes, gt_masks=_bitmaps(masks, height, width))


def _bitmaps(masks: Any, height: int, width: int) -> Tensor:
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks, height, width)
    return (masks.tensor if isinstance(masks, BitMasks) else masks).bool()


def inputs_from_detectron2(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What the model takes of one image, its targets as ours; those that are ours already stay."""
    targets = inputs.get("instances")
    if not isinstance(targets, HostInstances):
        return dict(inputs)
    return {**inputs, "instances": instances_from_detectron2(targets)}


def output_to_detectron2(output: Mapping[str, Any]) -> dict[str, Any]:
    """The model's result of one image; scores and panoptic maps are the same on both sides."""
    if "instances" not in output:
        return dict(output)
    return {**output, "instances": instances_to_detectron2(output["instances"])}
