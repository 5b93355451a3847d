"""Regions to draw, one for each class or object of a result, with their colors and what their labels say.

Shapes: `H, W` the image's sides in pixels, `K` classes, `N` objects.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mask2former.drawing.colors import Color, instance_color
from mask2former.drawing.shapes import Box, Shape, label_shapes, mask_shape, run_length_shapes
from mask2former.structures import Instances, RunLengthMasks
from mask2former.utils.label_maps import Array

SHADES = 8  # of a class in one image; beyond, objects far apart share one


class Region(NamedTuple):
    """Part of an image: its shape, color and class.

    The label has the name of the class, a mark that tells the object from others, such as "#3", and a note if
    there is room.
    """

    shape: Shape
    color: Color
    class_id: int
    name: str
    note: str = ""
    mark: str = ""


def semantic_regions(labels: Array, names: Sequence[str], colors: Sequence[Color]) -> list[Region]:
    """Return one region per class in the label map (H, W); labels from K on are ignored."""
    shapes = label_shapes(labels, range(len(names)))
    return [Region(shape, colors[k], k, names[k]) for k, shape in enumerate(shapes) if shape.area]


def panoptic_regions(
    segment_map: Array,
    segments: Iterable[Mapping[str, Any]],
    names: Sequence[str],
    colors: Sequence[Color],
    ids: Sequence[int | None] | None = None,
) -> list[Region]:
    """Return one region per segment `{id, category_id}` of the map (H, W) of their ids."""
    segments = list(segments)
    shapes = label_shapes(segment_map, [segment["id"] for segment in segments])
    classes = [segment["category_id"] for segment in segments]
    return shape_regions(shapes, classes, names, colors, ids=ids, largest_first=False)


def instance_regions(
    instances: Instances,
    names: Sequence[str],
    colors: Sequence[Color],
    ids: Sequence[int | None] | None = None,
) -> list[Region]:
    """Return one region per instance, with its score in the note, the largest first."""
    masks = instances.pred_masks
    is_coded = isinstance(masks, RunLengthMasks)
    shapes = run_length_shapes(masks) if is_coded else [mask_shape(mask.cpu().numpy()) for mask in masks]
    scores = [f"{score:.0%}" for score in instances.scores.tolist()]
    return shape_regions(shapes, instances.pred_classes.tolist(), names, colors, scores, ids=ids)


def shape_regions(
    shapes: Sequence[Shape],
    classes: Sequence[int],
    names: Sequence[str],
    colors: Sequence[Color],
    notes: Sequence[str] = (),
    *,
    ids: Sequence[int | None] | None = None,
    largest_first: bool = True,
) -> list[Region]:
    """Return one region per shape, the largest first, so that small ones are drawn on top.

    Args:
        shapes: of the N objects.
        classes: their classes, positions in `names` and `colors`.
        names: of the K classes.
        colors: of the K classes.
        notes: of the N objects, for their labels.
        ids: of the N objects, or None for one that has none, such as stuff. The id is shown in the label, and
            gives the shade of the class's color. Without ids, neighbors of a class have different shades.
        largest_first: otherwise they stay in order.

    Raises:
        ValueError: there are more or fewer ids than objects.
    """
    if ids is not None and len(ids) != len(classes):
        raise ValueError(f"there are {len(classes)} objects to draw, and {len(ids)} ids")
    numbers = neighbor_numbers(shapes, classes) if ids is None else [number or 0 for number in ids]
    marks = ["" if number is None else f"#{number}" for number in ids or [None] * len(classes)]
    notes = notes or [""] * len(classes)
    regions = [
        Region(shape, instance_color(colors[k], number), k, names[k], note, mark)
        for shape, k, number, note, mark in zip(shapes, classes, numbers, notes, marks, strict=True)
    ]
    return sorted(regions, key=lambda region: -region.shape.area) if largest_first else regions


def neighbor_numbers(shapes: Sequence[Shape], classes: Sequence[int]) -> list[int]:
    """Return the number of each shape's shade, below SHADES; close shapes of a class get different ones."""
    seen: dict[int, tuple[list[Box], list[int]]] = {}
    numbers = []
    for shape, k in zip(shapes, classes, strict=True):
        boxes, taken = seen.setdefault(k, ([], []))
        if not shape.box:
            numbers.append(0)
            continue
        closeness = (1 + _gaps(shape.box, np.array(boxes, float).reshape(-1, 4))) ** -2.0
        crowding = np.bincount(np.array(taken, int), weights=closeness, minlength=SHADES)
        numbers.append(int(crowding.argmin()))
        boxes.append(shape.box)
        taken.append(numbers[-1])
    return numbers


def _gaps(box: Box, others: Array) -> Array:
    """Return the distance (N,) in pixels from a box to others (N, 4), 0 for those that overlap."""
    (left, top, right, bottom), (lefts, tops, rights, bottoms) = box, others.T
    across = np.maximum(0, np.maximum(lefts - right, left - rights))
    down = np.maximum(0, np.maximum(tops - bottom, top - bottoms))
    return np.hypot(across, down)


def result_regions(
    task: str,
    result: Any,
    names: Sequence[str],
    colors: Sequence[Color],
    ids: Sequence[int | None] | None = None,
) -> list[Region]:
    """Return the regions of a model's result, which is (ids (H, W), segments) for the task "panoptic".

    For "instance" it is `Instances`, for "semantic" a label map (H, W). `ids` are those of the segments or
    instances, see `shape_regions`.

    Raises:
        ValueError: there are more or fewer ids than objects, or ids for classes.
    """
    if task == "semantic":
        if ids is not None:
            raise ValueError("ids belong to segments or instances; a semantic result has classes alone")
        return semantic_regions(result, names, colors)
    regions: dict[str, Callable[..., list[Region]]] = {
        "panoptic": lambda segmented, *rest: panoptic_regions(*segmented, *rest),
        "instance": instance_regions,
    }
    return regions[task](result, names, colors, ids)
