"""Check of one record: its image is decoded, and its masks are made as training makes them.

Only a few numbers are kept, so processes can share the work, and a dataset of any size fits into memory.

Shapes: `N` regions of one image, `H, W` its sides in pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from mask2former.data.catalog import Metadata, Record
from mask2former.data.errors import DatasetError, broken_record
from mask2former.data.ground_truth.geometry import Geometry
from mask2former.data.ground_truth.polygons import Patch
from mask2former.data.ground_truth.readers import (
    MapGroundTruth,
    Reader,
    Size,
    read_instances,
    read_panoptic,
    read_panoptic_png,
    read_semantic,
)
from mask2former.data.mapper import record_image
from mask2former.structures import runs
from mask2former.utils.coco_values import require_areas
from mask2former.utils.label_maps import VOID
from mask2former.utils.storage import is_file, to_path

MAX_IDS = 5  # in one warning
SLACK_PIXELS, SLACK_SHARE = 2, 0.1  # how far a box may differ from its mask's; of the longer side
XYXY, XYWH = 0, 1  # Detectron2's BoxMode

# Kinds of warnings
EMPTY = "objects whose mask is empty; training leaves them out"
LOOSE_BOX = "boxes that do not fit their masks"
HIDDEN = "segments without a pixel in their PNG; training leaves them out, PQ counts them as missed"
UNLISTED = "PNGs with ids that segments_info does not list; these pixels have no class, and PQ finds no match"
NO_LABEL_MAP = "label maps that are named and do not exist; mIoU is measured against the panoptic PNG"


class DataWarning(NamedTuple):
    """Something unusual that training tolerates: its kind, and where it was found."""

    kind: str
    where: str


@dataclass
class RecordSummary:
    """The content of one record in a few numbers; of a broken record only `error`.

    Attributes:
        size: (H, W).
        classes: contiguous ids of its N regions with pixels, without crowds.
        areas: their pixels.
        crowds: number of regions marked `iscrowd`.
        forms: number of annotations, or files, of each representation.
        unlabeled: pixels of no region, if regions are to cover the image; else None.
    """

    file_name: str
    error: str | None = None
    size: Size = (0, 0)
    classes: list[int] = field(default_factory=list)
    areas: list[int] = field(default_factory=list)
    crowds: int = 0
    forms: Counter[str] = field(default_factory=Counter)
    unlabeled: int | None = None
    warnings: list[DataWarning] = field(default_factory=list)

    def warn(self, kind: str, what: str, file: str | None = None) -> None:
        """Add a warning about `file`, by default the image."""
        self.warnings.append(DataWarning(kind, f"{file or self.file_name}: {what}"))


class AnnotationKind(NamedTuple):
    """How a kind of annotations is read in training and summarized, and which fact names its classes."""

    reader: Reader
    names_fact: str
    summarize: Callable[[RecordSummary, Record, Metadata], None]


def annotation_kind(record: Record) -> AnnotationKind | None:
    """Return the kind of the record's annotations, the most detailed if there are several, or None."""
    return next((kind for key, kind in KINDS.items() if key in record), None)


def summarize_record(record: Record, metadata: Metadata) -> RecordSummary:
    """Decode the record's image and make all its masks; an exception becomes the summary's `error`."""
    name = str(record.get("file_name"))
    try:
        summary = RecordSummary(name, size=record_image(record).shape[:2])
        if kind := annotation_kind(record):
            kind.summarize(summary, record, metadata)
        return summary
    except DatasetError as error:
        return RecordSummary(name, error=str(error))
    except Exception as error:  # a record can be broken in ways that no reader foresees
        return RecordSummary(name, error=str(broken_record(record, repr(error))))


def _summarize_instances(summary: RecordSummary, record: Record, metadata: Metadata) -> None:
    annotations = record["annotations"]
    decoded = [{**annotation, "iscrowd": 0} for annotation in annotations]  # crowds too: AP needs them
    segments = read_instances({**record, "annotations": decoded}, metadata, summary.size)
    for i, annotation in enumerate(annotations):
        patch = segments.draw(i, Geometry.identity(*summary.size))
        area = int(patch.mask.sum())
        summary.forms[_form(annotation["segmentation"])] += 1
        if annotation.get("iscrowd", 0):
            summary.crowds += 1
        elif area:
            summary.classes.append(int(segments.classes[i]))
            summary.areas.append(area)
        if not area:
            summary.warn(EMPTY, f"annotation {i}")
        elif difference := _box_difference(annotation, patch):
            summary.warn(LOOSE_BOX, f"annotation {i}: {difference}")


def _summarize_panoptic(summary: RecordSummary, record: Record, metadata: Metadata) -> None:
    segments, png = record["segments_info"], record["pan_seg_file_name"]
    _add_map(summary, read_panoptic(record, metadata, summary.size))
    summary.forms["panoptic PNG"] += 1
    summary.crowds = sum(bool(segment.get("iscrowd", 0)) for segment in segments)
    listed = {segment["id"] for segment in segments}
    pixels = read_panoptic_png(record, summary.size).ravel()
    shown = {*pixels[runs(pixels)[:, 0]].tolist()} - {VOID}
    if metadata.get("panoptic_json"):
        _check_areas(record, shown)
    for kind, ids in ((UNLISTED, shown - listed), (HIDDEN, listed - shown)):
        if ids:
            summary.warn(kind, f"ids {sorted(ids)[:MAX_IDS]}", png)
    label_map = record.get("sem_seg_file_name")
    if label_map and is_file(to_path(label_map)):
        read_semantic(record, metadata, summary.size)  # raises if it is broken
        summary.forms["label PNG"] += 1
    elif label_map:
        summary.warn(NO_LABEL_MAP, "no such file", label_map)


def _check_areas(record: Record, shown: Collection[int]) -> None:
    try:
        require_areas(record["segments_info"], lambda: shown)
    except ValueError as error:
        raise broken_record(record, str(error)) from error


def _summarize_semantic(summary: RecordSummary, record: Record, metadata: Metadata) -> None:
    _add_map(summary, read_semantic(record, metadata, summary.size))
    summary.forms["label PNG"] += 1


KINDS = {
    "pan_seg_file_name": AnnotationKind(read_panoptic, "stuff_classes", _summarize_panoptic),
    "annotations": AnnotationKind(read_instances, "thing_classes", _summarize_instances),
    "sem_seg_file_name": AnnotationKind(read_semantic, "stuff_classes", _summarize_semantic),
}


def _add_map(summary: RecordSummary, segments: MapGroundTruth) -> None:
    areas = np.bincount(segments.id_map.ravel(), minlength=int(segments.ids.max(initial=0)) + 1)
    summary.classes, summary.areas = segments.classes.tolist(), areas[segments.ids].tolist()
    summary.unlabeled = int(areas.sum() - areas[np.unique(segments.ids)].sum())


def _form(segmentation: Any) -> str:
    if isinstance(segmentation, dict):
        return "uncompressed RLE" if isinstance(segmentation["counts"], list) else "RLE"
    return "polygons" if isinstance(segmentation, list) else "arrays"


def _box_difference(annotation: Mapping[str, Any], patch: Patch) -> str | None:
    """Return how an annotation's box differs from that of its mask, or None within the slack."""
    mode, box = annotation.get("bbox_mode", XYXY), annotation.get("bbox")
    if box is None or mode not in (XYXY, XYWH):
        return None
    left, top, right, bottom = box
    given = [left, top, left + right, top + bottom] if mode == XYWH else [left, top, right, bottom]
    rows, cols = np.flatnonzero(patch.mask.any(1)), np.flatnonzero(patch.mask.any(0))
    x, y = patch.cols.start or 0, patch.rows.start or 0
    tight = np.array([x + cols[0], y + rows[0], x + cols[-1] + 1, y + rows[-1] + 1])
    slack = SLACK_PIXELS + SLACK_SHARE * float((tight[2:] - tight[:2]).max())
    fits = (np.abs(np.array(given) - tight) <= slack).all()
    return None if fits else f"{given} for a mask in {tight.tolist()}"
