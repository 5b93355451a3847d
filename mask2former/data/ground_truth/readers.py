"""Readers that turn the annotations of a record into the classes and masks of an image's segments.

A reader takes a record (Detectron2's dataset dict) and the dataset's metadata, checks the record, and returns
the segments to train on; crowd regions are left out. Masks are made on demand, for the geometry of an
augmented
image: `ground_truth.visible(geometry)`.

Shapes: `N` segments of one image, `n` those that are visible; `H, W` the sides of the original image, `h, w`
of the augmented one, in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from mask2former.data.catalog import Metadata, Record
from mask2former.data.errors import broken_record, first_few, wrong_map_size
from mask2former.data.ground_truth.geometry import Geometry, GroundTruth
from mask2former.data.ground_truth.polygons import Patch, draw_polygons
from mask2former.structures import runs
from mask2former.utils import coco_values
from mask2former.utils.coco_masks import checked_rle
from mask2former.utils.label_maps import (
    VOID,
    read_label_map,
    read_segment_ids,
    relabel,
    semantic_from_panoptic,
    upright,
)
from mask2former.utils.messages import brief, reason

Size = tuple[int, int]


class MapGroundTruth(NamedTuple):
    """Segments of one map (H, W): segment i is where the map equals `ids[i]`, which is never 0."""

    classes: np.ndarray
    ids: np.ndarray
    id_map: np.ndarray

    def visible(self, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
        id_map = geometry.apply(self.id_map)
        masks = np.empty((len(self.ids), *geometry.size), dtype=bool)
        indices: list[int] = []
        for i, segment_id in enumerate(self.ids):
            mask = np.equal(id_map, segment_id, out=masks[len(indices)])
            indices += [i] if mask.any() else []
        masks.resize((len(indices), *geometry.size), refcheck=False)  # frees the rest without a copy
        return np.array(indices, dtype=np.int64), masks


class DrawnGroundTruth(NamedTuple):
    """Segments that may overlap; `draw(i, geometry)` draws the mask of segment i."""

    classes: np.ndarray
    draw: Callable[[int, Geometry], Patch]

    def visible(self, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
        patches = {i: self.draw(i, geometry) for i in range(len(self.classes))}
        shown = {i: patch for i, patch in patches.items() if patch.mask.any()}
        masks = np.zeros((len(shown), *geometry.size), dtype=bool)
        for mask, patch in zip(masks, shown.values(), strict=True):
            patch.paste(mask)
        return np.array(list(shown), dtype=np.int64), masks


Reader = Callable[[Record, Metadata, Size], GroundTruth]


def read_instances(record: Record, metadata: Metadata, size: Size) -> DrawnGroundTruth:
    """Read `annotations`: polygons, RLE (compressed or not) or arrays (H, W).

    Raises:
        DatasetError: there are no annotations, a class is unknown, or a mask is broken or of another size.
    """
    return _read_annotations(record, range(len(metadata.thing_classes)), size)


def read_things(record: Record, metadata: Metadata, size: Size) -> GroundTruth:
    """Read the things of a panoptic dataset: `annotations` if the record has them, else the panoptic PNG.

    Classes are contiguous ids of the panoptic classes, in `annotations` too.

    Raises:
        DatasetError: as `read_instances` or `panoptic_segments`; or a class of `annotations` is no thing.
    """
    things = sorted({*metadata.thing_dataset_id_to_contiguous_id.values()})
    if "annotations" in record:
        return _read_annotations(record, things, size)
    classes, ids, id_map = read_panoptic(record, metadata, size)
    is_thing = np.isin(classes, things)
    return MapGroundTruth(classes[is_thing], ids[is_thing], id_map)


def _read_annotations(record: Record, known: Sequence[int], size: Size) -> DrawnGroundTruth:
    """Read `annotations`, whose classes must be among the `known`; crowd regions are left out."""
    annotations = [a for a in _value(record, "annotations") if not a.get("iscrowd", 0)]
    classes = _checked_classes(record, annotations, known)

    def draw(index: int, geometry: Geometry) -> Patch:
        return draw_mask(annotations[index].get("segmentation"), size, geometry, record)

    return DrawnGroundTruth(classes, draw)


def read_panoptic(record: Record, metadata: Metadata, size: Size) -> MapGroundTruth:
    """Read the panoptic PNG `pan_seg_file_name` and `segments_info`.

    Raises:
        DatasetError: as `panoptic_segments`.
    """
    id_map, shown = panoptic_segments(record, len(metadata.stuff_classes), size)
    segments = [segment for segment in shown if not segment["iscrowd"]]
    ids, classes = (
        np.array([segment[key] for segment in segments], np.int64) for key in ("id", "category_id")
    )
    return MapGroundTruth(classes, *_renumber(ids, id_map))


def panoptic_segments(
    record: Record, num_classes: int, size: Size
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return the segment ids (H, W) int32 of the panoptic PNG, and the listed segments that have pixels.

    A segment without a pixel is left out if others hide it, as some stuff of ADE20K. Ids of the PNG that are
    not listed are void.

    Raises:
        DatasetError: a file is missing, broken or of another size, `segments_info` is broken, or the ids of
            the PNG are others than listed.
    """
    id_map = read_panoptic_png(record, size)
    try:
        segments = coco_values.segments(_value(record, "segments_info"), range(num_classes))
    except ValueError as error:
        raise broken_record(record, str(error)) from error
    listed = np.array([segment["id"] for segment in segments], np.int64)
    flat = id_map.ravel()
    shown = np.setdiff1d(flat[runs(flat)[:, 0]], [VOID])
    absent, unlisted = np.setdiff1d(listed, shown), np.setdiff1d(shown, listed)
    if absent.size and (unlisted.size or not shown.size):
        others = f"some have {first_few(unlisted.tolist())}, which it does not list"
        found = others if unlisted.size else "all are void"
        what = f"no pixel has the ids {first_few(absent.tolist())} of segments_info, but {found}"
        raise broken_record(record, what, record["pan_seg_file_name"])
    return id_map, [segment for segment in segments if segment["id"] not in absent]


def read_semantic(record: Record, metadata: Metadata, size: Size) -> MapGroundTruth:
    """Read the label map: one segment for each class in it; pixels of the ignore label belong to none.

    Raises:
        DatasetError: a file is missing, broken or of another size, or a label is not a class.
    """
    label_map = semantic_map(record, metadata, size)
    labels = np.flatnonzero(np.bincount(label_map.ravel()))
    labels = labels[labels != metadata.ignore_label]
    num_classes = len(metadata.stuff_classes)
    if wrong := labels[labels >= num_classes].tolist():
        what = (
            f"label {first_few(wrong, 5)}; valid are 0..{num_classes - 1}, "
            f"and {metadata.ignore_label} where there is none"
        )
        raise broken_record(record, what, record.get("sem_seg_file_name"))
    return MapGroundTruth(labels, labels + 1, label_map + 1)


def semantic_map(record: Record, metadata: Metadata, size: Size) -> np.ndarray:
    """Return the label map (H, W) int32 of the semantic PNG, or if there is none, of the panoptic PNG.

    If the values of the file are not contiguous ids, the record's `sem_seg_label_ids` maps them.
    """
    if "sem_seg_file_name" in record:
        table = record.get("sem_seg_label_ids")
        read = read_label_map if table is None else lambda path: relabel(read_label_map(path), table)
        return _read_map(record, "sem_seg_file_name", read, size)
    ids, segments = panoptic_segments(record, len(metadata.stuff_classes), size)
    return semantic_from_panoptic(ids, segments, metadata.ignore_label)


def read_panoptic_png(record: Record, size: Size) -> np.ndarray:
    """Return the segment ids (H, W) int32 of the record's panoptic PNG."""
    return _read_map(record, "pan_seg_file_name", read_segment_ids, size)


def draw_mask(segmentation: Any, size: Size, geometry: Geometry, record: Record) -> Patch:
    """Draw polygons, an RLE (counts as list, str or bytes) or an array (H, W) in the augmented image.

    Raises:
        DatasetError: the segmentation is none of these, is broken, or has another size than the image.
    """
    if not isinstance(segmentation, list | dict | np.ndarray):
        what = f"'segmentation' is {brief(segmentation, 60)}: not polygons, RLE or array"
        raise broken_record(record, what)
    try:
        if isinstance(segmentation, list):
            return draw_polygons(segmentation, geometry, size)
        mask = _decode(segmentation, size) if isinstance(segmentation, dict) else segmentation
    except Exception as error:  # pycocotools raises plain Exception
        raise broken_record(record, f"mask {brief(segmentation, 60)} cannot be decoded: {error!r}") from error
    if mask.shape != size:
        raise broken_record(record, f"a mask of (height, width) {mask.shape} for an image of {size}")
    return Patch.whole(geometry.apply(mask.astype(bool, order="C")))  # decoded in column order


def _decode(code: dict[str, Any], size: Size) -> np.ndarray:
    code = checked_rle(code, size)
    return coco_mask.decode(coco_mask.frPyObjects(code, *size) if isinstance(code["counts"], list) else code)


def _read_map(record: Record, key: str, read: Callable[[Any], np.ndarray], size: Size) -> np.ndarray:
    """Return `read(path)` as (H, W) int32 for the path `record[key]`."""
    path = _value(record, key)
    try:
        values = upright(read(path), record)
    except ValueError as error:
        raise broken_record(record, reason(error, path), path) from error
    if values.shape != size:
        raise wrong_map_size(record, path, values.shape, size)
    return values.astype(np.int32)


def _checked_classes(record: Record, segments: Sequence[dict[str, Any]], known: Sequence[int]) -> np.ndarray:
    classes = np.array([_value(segment, "category_id", record) for segment in segments], dtype=np.int64)
    if wrong := classes[~np.isin(classes, known)].tolist():
        valid = f"0..{len(known) - 1}" if isinstance(known, range) else f"things: {first_few(known, 20)}"
        what = f"class {first_few(wrong, 5)}, but there are {len(known)} ({valid})"
        raise broken_record(record, what)
    return classes


def _renumber(ids: np.ndarray, id_map: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids (N,) and their map (H, W) numbered from 1, as bytes if they are few: bytes are faster.

    Ids of the map that are not among `ids` become 0.
    """
    flat = id_map.ravel()
    starts, ends = runs(flat).T
    run_ids = flat[starts]
    different, index = np.unique(ids, return_inverse=True)
    numbers = np.searchsorted(different, run_ids) + 1
    numbers[~np.isin(run_ids, different)] = 0
    small = np.min_scalar_type(len(different))
    number_map = np.repeat(numbers.astype(small), ends - starts)
    return (index + 1).astype(small), number_map.reshape(id_map.shape)


def _value(container: dict[str, Any], key: str, record: Record | None = None) -> Any:
    if key not in container:
        raise broken_record(record or container, f"no '{key}' among {sorted(container)}")
    return container[key]
