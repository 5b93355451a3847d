"""The objects of results in the forms that other tools take: a COCO file, and supervision's Detections.

Shapes: `H, W` the image's sides in pixels, `h, w` those of a box, `N` objects, `K` classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import torch

from mask2former.drawing.shapes import Box, Shape, enlarge, label_shapes, run_length_shapes
from mask2former.evaluation.common.rle import encode_masks
from mask2former.utils.label_maps import Array

if TYPE_CHECKING:
    import supervision

TOLERANCE = 0.5  # pixels that a polygon may be away from its mask's outline


class Found(NamedTuple):
    """An object: its shape and the position of its class among K.

    An instance has a score, and in a frame of a film an object has the id of its track.
    """

    shape: Shape
    class_id: int
    score: float | None = None
    track_id: int | None = None


class Image(NamedTuple):
    """A segmented image: its file's name, (H, W), its objects, and the names of the K classes."""

    file_name: str
    size: tuple[int, int]
    found: list[Found]
    class_names: Sequence[str]


def found_objects(task: str, result: Any) -> list[Found]:
    """Return the objects of the result of "panoptic" or "instance"; empty masks are left out."""
    if task == "panoptic":
        ids, segments = result
        shapes = label_shapes(ids, [segment["id"] for segment in segments])
        found = [
            Found(shape, segment["category_id"], segment.get("score"), segment.get("track_id"))
            for shape, segment in zip(shapes, segments, strict=True)
        ]
    else:
        shapes = run_length_shapes(result.pred_masks)
        tracks = result.track_ids.tolist() if result.has("track_ids") else [None] * len(shapes)
        found = list(map(Found, shapes, result.pred_classes.tolist(), result.scores.tolist(), tracks))
    return [item for item in found if item.shape.box]


def coco_file(images: Iterable[Image], *, rle: bool) -> dict[str, Any]:
    """Return the content of a COCO instance file.

    Ids of images, objects and classes begin at 1: CVAT takes a class of id 0 for none.

    Raises:
        ValueError: images differ in their class names.
    """
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    names: list[str] | None = None
    for number, image in enumerate(images, start=1):
        names = names or list(image.class_names)
        if list(image.class_names) != names:
            raise ValueError(f"{image.file_name} has other class names than the images before it")
        height, width = image.size
        records.append({"id": number, "file_name": image.file_name, "width": width, "height": height})
        for annotation in image_annotations(image.found, image.size, rle):
            annotations.append({"id": len(annotations) + 1, "image_id": number, **annotation})
    categories = [{"id": k, "name": name} for k, name in enumerate(names or [], start=1)]
    return {"images": records, "annotations": annotations, "categories": categories}


def image_annotations(found: list[Found], size: tuple[int, int], rle: bool) -> Iterator[dict[str, Any]]:
    """Yield the annotations, without ids; one mask at a time is dense."""
    for shape, class_id, score, track_id in found:
        assert shape.box
        left, top, right, bottom = shape.box
        yield {
            "category_id": class_id + 1,
            "bbox": [left, top, right - left, bottom - top],
            "area": shape.area,
            "iscrowd": 0,
            "segmentation": shape_code(shape, size) if rle else _polygons(shape, shape.box),
            **({} if score is None else {"score": score}),
            **({} if track_id is None else {"track_id": track_id}),
        }


def shape_code(shape: Shape, size: tuple[int, int]) -> dict[str, Any]:
    """Return COCO's run-length code of a shape, which is not empty, in an image (H, W)."""
    assert shape.box
    columns = np.zeros((1, *size[::-1]), np.uint8)  # in the order of COCO's codes, so that nothing is copied
    mask = columns.swapaxes(1, 2)
    _fill(mask[0], shape, shape.box)
    return encode_masks(torch.from_numpy(mask))[0]


def _fill(mask: Array, shape: Shape, box: Box) -> None:
    """Set the pixels of a shape in a mask (H, W)."""
    left, top, right, bottom = box
    mask[top:bottom, left:right] = shape.inside(box)


def _polygons(shape: Shape, box: Box) -> list[list[float]]:
    """Return the outlines [x, y, x, y, ...] of a mask's parts, in pixels; their holes are lost."""
    # A contour passes through the centers of pixels. Those of halved pixels lie inside the whole ones' edges.
    halves = enlarge(shape.inside(box).astype(np.uint8), 2)
    contours, _ = cv2.findContours(halves, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [((_simplified(contour) + 0.5) / 2 + box[:2]).ravel().tolist() for contour in contours]


def _simplified(contour: Array) -> Array:
    """Return the points (n, 2) of a contour (m, 1, 2) in half pixels, without those that matter little."""
    simple = cv2.approxPolyDP(contour, 2 * TOLERANCE, closed=True)
    return (simple if len(simple) > 2 else contour)[:, 0]  # fewer than three points are no polygon


def supervision_detections(
    found: list[Found], size: tuple[int, int], class_names: Sequence[str]
) -> supervision.Detections:
    """Return supervision's Detections with masks (N, H, W) bool, boxes, classes, names, and scores if known.

    Raises:
        ImportError: supervision is not installed.
    """
    try:
        from supervision import Detections
    except ImportError as error:
        raise ImportError("supervision is not installed; type pip install supervision") from error
    masks = np.zeros((len(found), *size), bool)
    for mask, item in zip(masks, found, strict=True):
        assert item.shape.box
        _fill(mask, item.shape, item.shape.box)
    ids = np.array([item.class_id for item in found], int)
    scores = [item.score for item in found]
    tracks = [item.track_id for item in found]
    return Detections(
        xyxy=np.array([item.shape.box for item in found], np.float32).reshape(-1, 4),
        mask=masks,
        confidence=None if None in scores else np.array(scores, np.float32),
        class_id=ids,
        tracker_id=None if None in tracks else np.array(tracks, int),
        data={"class_name": np.array(class_names, dtype=np.str_)[ids]},
    )
