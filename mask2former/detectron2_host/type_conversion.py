"""Conversion of our types to Detectron2's and back.

Shapes: `N` instances of one image, `H, W` the image's sides in pixels.
"""

from collections.abc import Mapping
from typing import Any

import torch
from detectron2.structures import BitMasks, Boxes, PolygonMasks
from detectron2.structures import Instances as HostInstances

from mask2former.structures import Instances, RunLengthMasks

WRAPPERS = {"pred_boxes": Boxes, "gt_boxes": Boxes, "gt_masks": BitMasks}


def instances_to_detectron2(instances: Instances) -> HostInstances:
    """Convert all fields.

    Boxes become `Boxes`, ground-truth masks `BitMasks`, predicted masks a tensor (N, H, W) bool. Targets also
    get `gt_boxes`, which Detectron2's models train on.
    """
    fields = dict(instances.get_fields())
    for name, value in fields.items():
        value = value.dense() if isinstance(value, RunLengthMasks) else getattr(value, "tensor", value)
        fields[name] = WRAPPERS[name](value) if name in WRAPPERS else value
    if "gt_masks" in fields and "gt_boxes" not in fields:
        fields["gt_boxes"] = fields["gt_masks"].get_bounding_boxes()
    return HostInstances(instances.image_size, **fields)


def instances_from_detectron2(instances: HostInstances) -> Instances:
    """Convert targets: classes, and polygons, bitmaps or a tensor to masks (N, H, W) bool.

    For an image without objects Detectron2 omits the masks and sometimes the classes.

    Raises:
        ValueError: there are objects without masks.
    """
    height, width = instances.image_size
    classes = instances.gt_classes if instances.has("gt_classes") else torch.zeros(0, dtype=torch.int64)
    if len(classes) and not instances.has("gt_masks"):
        raise ValueError("targets have boxes but no masks; Detectron2's mapper needs MODEL.MASK_ON True")
    masks = instances.gt_masks if len(classes) else torch.zeros(0, height, width)
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks, height, width)
    if isinstance(masks, BitMasks):
        masks = masks.tensor
    return Instances((height, width), gt_classes=classes, gt_masks=masks.bool())


def inputs_from_detectron2(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the targets in one image's input, unless they are ours already."""
    targets = inputs.get("instances")
    if not isinstance(targets, HostInstances):
        return dict(inputs)
    return {**inputs, "instances": instances_from_detectron2(targets)}


def inputs_to_detectron2(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the targets in one image's input, unless there are none or they are Detectron2's already."""
    targets = inputs.get("instances")
    if not isinstance(targets, Instances):
        return dict(inputs)
    return {**inputs, "instances": instances_to_detectron2(targets)}


def output_to_detectron2(output: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the instances in one image's output; scores and panoptic maps have the same form."""
    if "instances" not in output:
        return dict(output)
    return {**output, "instances": instances_to_detectron2(output["instances"])}
