"""Ground truth: any annotation -> the classes and masks of an image's segments.

A reader takes a record (Detectron2's dataset dict) and the dataset's metadata, checks the record, and returns
the segments that are trained on; regions marked `iscrowd` are not among them. Masks are made when asked for,
as a view of the image shows them: `segments.visible(view)`.

Shapes: `N` segments of one image, `n` those that a view shows; `H, W` the sides of its original image,
`h, w` of the view, in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from pycocotools import mask as coco_mask

from mask2former.data.catalog import Metadata, Record
from mask2former.data.errors import broken_record
from mask2former.data.ground_truth.geometry import View
from mask2former.data.ground_truth.polygons import Patch, draw_polygons
from mask2former.data.ground_truth.rle import count_pixels
from mask2former.structures import runs
from mask2former.utils.label_maps import read_label_map, read_segment_ids, relabeled, semantic_from_panoptic

Size = tuple[int, int]


class Segments(Protocol):
    """What a reader returns."""

    @property
    def classes(self) -> np.ndarray:
        """Contiguous class ids (N,) int64."""

    def visible(self, view: View) -> tuple[np.ndarray, np.ndarray]:
        """Which segments (n,) `view` shows a pixel of, and their masks (n, h, w) bool."""


class MapSegments(NamedTuple):
    """Segments that share one map (H, W): segment i is where the map holds `ids[i]`, which is never 0."""

    classes: np.ndarray
    ids: np.ndarray
    id_map: np.ndarray

    def visible(self, view: View) -> tuple[np.ndarray, np.ndarray]:
        """See `Segments`."""
        seen = view.take(self.id_map)
        masks = np.empty((len(self.ids), *view.size), dtype=bool)
        which: list[int] = []
        for i, segment_id in enumerate(self.ids):
            mask = np.equal(seen, segment_id, out=masks[len(which)])
            which += [i] if mask.any() else []
        masks.resize((len(which), *view.size), refcheck=False)  # gives the rest back, copies nothing
        return np.array(which, dtype=np.int64), masks


class DrawnSegments(NamedTuple):
    """Segments each with a mask of its own; `draw(i, view)` is what a view shows of the i-th."""

    classes: np.ndarray
    draw: Callable[[int, View], Patch]

    def visible(self, view: View) -> tuple[np.ndarray, np.ndarray]:
        """See `Segments`."""
        patches = {i: self.draw(i, view) for i in range(len(self.classes))}
        shown = {i: patch for i, patch in patches.items() if patch.mask.any()}
        masks = np.zeros((len(shown), *view.size), dtype=bool)
        for mask, patch in zip(masks, shown.values(), strict=True):
            patch.paste(mask)
        return np.array(list(shown), dtype=np.int64), masks


Reader = Callable[[Record, Metadata, Size], Segments]


def read_instances(record: Record, metadata: Metadata, size: Size) -> DrawnSegments:
    """Segments of `annotations`: polygons, RLE (compressed or not) or (H, W) arrays.

    Raises:
        DatasetError: no annotations, an unknown class, a mask that cannot be decoded or has another size.
    """
    annotations = [a for a in _value(record, "annotations") if not a.get("iscrowd", 0)]
    classes = _checked_classes(record, annotations, len(metadata.thing_classes))

    def draw(index: int, view: View) -> Patch:
        return draw_mask(annotations[index].get("segmentation"), size, view, record)

    return DrawnSegments(classes, draw)


def read_panoptic(record: Record, metadata: Metadata, size: Size) -> MapSegments:
    """Segments of a panoptic PNG: `pan_seg_file_name` and `segments_info`.

    Raises:
        DatasetError: a missing or unreadable file, another size, an unknown class, an id that the PNG lacks.
    """
    id_map = read_panoptic_png(record, size)
    segments = [s for s in _value(record, "segments_info") if not s.get("iscrowd", 0)]
    ids = np.array([_value(s, "id", record) for s in segments], dtype=np.int64)
    numbers, number_map = _numbered(ids, id_map)
    absent = [i for i, number in zip(ids, numbers, strict=True) if not (number_map == number).any()]
    if absent:
        what = f"no pixel has the id {_some(absent)} that segments_info lists"
        raise broken_record(record, what, record["pan_seg_file_name"])
    classes = _checked_classes(record, segments, len(metadata.stuff_classes))
    return MapSegments(classes, numbers, number_map)


def read_semantic(record: Record, metadata: Metadata, size: Size) -> MapSegments:
    """One segment for each class of the label map; pixels of the ignore label belong to none.

    Raises:
        DatasetError: a missing or unreadable file, another size, a label beyond the classes.
    """
    label_map = semantic_map(record, metadata, size)
    labels = np.flatnonzero(np.bincount(label_map.ravel()))
    labels = labels[labels != metadata.ignore_label]
    num_classes = len(metadata.stuff_classes)
    wrong = labels[labels >= num_classes]
    if len(wrong):
        what = (
            f"label {_some(wrong)}; valid are 0..{num_classes - 1}, "
            f"and {metadata.ignore_label} where there is none"
        )
        raise broken_record(record, what, record.get("sem_seg_file_name"))
    return MapSegments(labels, labels + 1, label_map + 1)


def semantic_map(record: Record, metadata: Metadata, size: Size) -> np.ndarray:
    """The label map (H, W) int32: the semantic PNG, or without one what the panoptic PNG says.

    Where the values of the file are not contiguous ids, the record's `sem_seg_label_ids` translates them.
    """
    if "sem_seg_file_name" in record:
        table = record.get("sem_seg_label_ids")
        read = read_label_map if table is None else lambda path: relabeled(read_label_map(path), table)
        return _read_map(record, "sem_seg_file_name", read, size)
    ids = read_panoptic_png(record, size)
    return semantic_from_panoptic(ids, _value(record, "segments_info"), metadata.ignore_label)


def read_panoptic_png(record: Record, size: Size) -> np.ndarray:
    """The segment ids (H, W) int32 of the record's panoptic PNG."""
    return _read_map(record, "pan_seg_file_name", read_segment_ids, size)


def draw_mask(segmentation: Any, size: Size, view: View, record: Record) -> Patch:
    """What `view` shows of polygons, of an RLE dict with counts as list, str or bytes, or of an (H, W) array.

    Raises:
        DatasetError: it is none of these, is broken, or has another size than the image.
    """
    if not isinstance(segmentation, list | dict | np.ndarray):
        raise broken_record(record, f"'segmentation' is {_shown(segmentation)}: not polygons, RLE or array")
    try:
        if isinstance(segmentation, list):
            return draw_polygons(segmentation, view, size)
        mask = coco_mask.decode(_as_rle(segmentation)) if isinstance(segmentation, dict) else segmentation
    except Exception as error:  # pycocotools raises bare ones
        raise broken_record(record, f"mask {_shown(segmentation)} cannot be decoded: {error!r}") from error
    if mask.shape != size:
        raise broken_record(record, f"a mask of (height, width) {mask.shape} for an image of {size}")
    return Patch.whole(view.take(mask.astype(bool, order="C")))  # pycocotools hands out columns


def _as_rle(segmentation: dict[str, Any]) -> dict[str, Any]:
    counts, listed = segmentation["counts"], isinstance(segmentation["counts"], list)
    if (sum(counts) if listed else count_pixels(counts)) != math.prod(segmentation["size"]):
        # pycocotools would leave the rest undefined
        raise ValueError("the counts do not add up to the size")
    return coco_mask.frPyObjects(segmentation, *segmentation["size"]) if listed else segmentation


def _read_map(record: Record, key: str, read: Callable[[Any], np.ndarray], size: Size) -> np.ndarray:
    """What `read` makes of the file that `record[key]` names: (H, W) int32."""
    path = _value(record, key)
    try:
        values = read(path)
    except ValueError as error:
        raise broken_record(record, str(error).removeprefix(f"{path}: "), path) from error
    if values.shape != size:
        raise broken_record(record, f"(height, width) is {values.shape}, the image's is {size}", path)
    return values.astype(np.int32)


def _checked_classes(record: Record, segments: Sequence[dict[str, Any]], num_classes: int) -> np.ndarray:
    classes = np.array([_value(segment, "category_id", record) for segment in segments], dtype=np.int64)
    wrong = classes[(classes < 0) | (classes >= num_classes)]
    if len(wrong):
        raise broken_record(
            record, f"class {_some(wrong)}, but there are {num_classes} (0..{num_classes - 1})"
        )
    return classes


def _numbered(ids: np.ndarray, id_map: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids (N,) and their map (H, W), with numbers from 1 instead: bytes, which are fast, if they are few.

    The map is worked on run by run of equal pixels; ids that are not among the given become 0.
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


def _some(values: Sequence[Any] | np.ndarray) -> str:
    listed = ", ".join(str(value) for value in values[:5])
    return listed + (", ..." if len(values) > 5 else "")


def _shown(segmentation: Any) -> str:
    text = repr(segmentation)
    return text if len(text) <= 60 else text[:57] + "..."
