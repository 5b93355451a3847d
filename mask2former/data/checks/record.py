"""One record looked into: its image decoded and its masks made as training makes them, then let go.

What is kept are a few numbers, so that processes can share the work and a dataset of any size fits in memory.

Shapes: `N` regions of one image, `H, W` its sides in pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from mask2former.data.catalog import Metadata, Record
from mask2former.data.errors import DatasetError, broken_record
from mask2former.data.ground_truth.geometry import View
from mask2former.data.ground_truth.polygons import Patch
from mask2former.data.ground_truth.readers import (
    MapSegments,
    Reader,
    Size,
    read_instances,
    read_panoptic,
    read_panoptic_png,
    read_semantic,
)
from mask2former.data.mapper import record_image
from mask2former.utils.storage import to_path

SOME = 5  # ids of one warning
BOX_SLACK = 2, 0.1  # pixels, and share of the longer side, that a box may be off its mask's
XYXY, XYWH = 0, 1  # Detectron2's BoxMode

EMPTY = "objects whose mask is empty; training leaves them out"
LOOSE_BOX = "boxes that do not fit their masks"
TWICE_LISTED = "PNGs whose segments_info lists an id twice"
UNLISTED = "PNGs with ids that segments_info does not list; their pixels have no class"
NO_LABEL_MAP = "label maps that are named and do not exist; mIoU is measured against the panoptic PNG"


class Warned(NamedTuple):
    """Something doubtful that training puts up with: one of the kinds above, and where."""

    kind: str
    where: str


@dataclass
class RecordFacts:
    """What one record holds, in a few numbers; of a broken one only `error`.

    Attributes:
        size: (H, W).
        classes: contiguous ids of its N regions with pixels, crowds not among them.
        areas: their pixels.
        crowds: regions marked `iscrowd`.
        forms: how many annotations, or files, there are of each representation.
        unlabeled: pixels of no region, where regions are to cover the image; else None.
    """

    file_name: str
    error: str | None = None
    size: Size = (0, 0)
    classes: list[int] = field(default_factory=list)
    areas: list[int] = field(default_factory=list)
    crowds: int = 0
    forms: Counter[str] = field(default_factory=Counter)
    unlabeled: int | None = None
    warnings: list[Warned] = field(default_factory=list)

    def count(self, category: int, area: int) -> None:
        """One region more."""
        self.classes.append(category)
        self.areas.append(area)

    def warn(self, kind: str, what: str, file: str | None = None) -> None:
        """One warning more, about `file` if not the image."""
        self.warnings.append(Warned(kind, f"{file or self.file_name}: {what}"))


class Task(NamedTuple):
    """What goes with a kind of annotations: how training reads them, whose names the classes have."""

    name: str
    reader: Reader
    names_fact: str
    look: Callable[[RecordFacts, Record, Metadata], None]


def task_of(record: Record) -> Task | None:
    """The task that a record is annotated for, the most telling first; None without annotations."""
    return next((task for key, task in TASKS.items() if key in record), None)


def look_into(record: Record, metadata: Metadata) -> RecordFacts:
    """Decode the record's image and make all its masks; whatever is wrong with it is its `error`."""
    name = str(record.get("file_name"))
    try:
        facts = RecordFacts(name, size=record_image(record).shape[:2])
        if task := task_of(record):
            task.look(facts, record, metadata)
        return facts
    except DatasetError as error:
        return RecordFacts(name, error=str(error))
    except Exception as error:  # records are wrong in ways that no reader foresees
        return RecordFacts(name, error=str(broken_record(record, repr(error))))


def _look_into_instances(facts: RecordFacts, record: Record, metadata: Metadata) -> None:
    """Crowds are decoded too: AP is measured with them."""
    annotations = record["annotations"]
    no_crowds = [{**annotation, "iscrowd": 0} for annotation in annotations]
    segments = read_instances({**record, "annotations": no_crowds}, metadata, facts.size)
    for i, annotation in enumerate(annotations):
        patch = segments.draw(i, View.whole(*facts.size))
        box, area = _tight_box(patch), int(patch.mask.sum())
        facts.forms[_form(annotation["segmentation"])] += 1
        if annotation.get("iscrowd", 0):
            facts.crowds += 1
        elif area:
            facts.count(int(segments.classes[i]), area)
        if not area:
            facts.warn(EMPTY, f"annotation {i}")
        elif not _fits(annotation, box):
            facts.warn(LOOSE_BOX, f"annotation {i}: {_corners(annotation)} for a mask in {box.tolist()}")


def _look_into_panoptic(facts: RecordFacts, record: Record, metadata: Metadata) -> None:
    segments = record["segments_info"]
    _count_map(facts, read_panoptic(record, metadata, facts.size))
    facts.forms["panoptic PNG"] += 1
    facts.crowds = sum(bool(segment.get("iscrowd", 0)) for segment in segments)
    png = record["pan_seg_file_name"]
    listed = Counter(segment["id"] for segment in segments)
    if twice := [number for number, times in listed.items() if times > 1]:
        facts.warn(TWICE_LISTED, f"ids {twice}", png)
    if unlisted := _different(read_panoptic_png(record, facts.size)) - {0, *listed}:
        facts.warn(UNLISTED, f"ids {sorted(unlisted)[:SOME]}", png)
    label_map = record.get("sem_seg_file_name")
    if label_map and to_path(label_map).is_file():
        read_semantic(record, metadata, facts.size)  # which raises what is wrong with it
        facts.forms["label PNG"] += 1
    elif label_map:
        facts.warn(NO_LABEL_MAP, "no such file", label_map)


def _look_into_semantic(facts: RecordFacts, record: Record, metadata: Metadata) -> None:
    _count_map(facts, read_semantic(record, metadata, facts.size))
    facts.forms["label PNG"] += 1


TASKS = {
    "pan_seg_file_name": Task("panoptic", read_panoptic, "stuff_classes", _look_into_panoptic),
    "annotations": Task("instance", read_instances, "thing_classes", _look_into_instances),
    "sem_seg_file_name": Task("semantic", read_semantic, "stuff_classes", _look_into_semantic),
}


def _count_map(facts: RecordFacts, segments: MapSegments) -> None:
    pixels = np.bincount(segments.id_map.ravel(), minlength=int(segments.ids.max(initial=0)) + 1)
    for category, segment_id in zip(segments.classes, segments.ids, strict=True):
        facts.count(int(category), int(pixels[segment_id]))
    facts.unlabeled = int(pixels.sum() - pixels[np.unique(segments.ids)].sum())


def _different(values: np.ndarray) -> set[int]:
    """The values of a map (H, W); only the first of equal neighbors is looked at."""
    flat = values.ravel()
    return set(flat[np.flatnonzero(np.append(True, flat[1:] != flat[:-1]))].tolist())


def _form(segmentation: Any) -> str:
    if isinstance(segmentation, dict):
        return "uncompressed RLE" if isinstance(segmentation["counts"], list) else "RLE"
    return "polygons" if isinstance(segmentation, list) else "arrays"


def _tight_box(patch: Patch) -> np.ndarray:
    """(4,) XYXY, right and bottom exclusive, in pixels; zeros for an empty mask."""
    rows, cols = np.flatnonzero(patch.mask.any(1)), np.flatnonzero(patch.mask.any(0))
    if not len(rows):
        return np.zeros(4, np.int64)
    left, top = patch.cols.start or 0, patch.rows.start or 0
    return np.array([left + cols[0], top + rows[0], left + cols[-1] + 1, top + rows[-1] + 1])


def _corners(annotation: Mapping[str, Any]) -> list[float]:
    """The given box as XYXY."""
    x, y, right, bottom = annotation["bbox"]
    given_as_size = annotation.get("bbox_mode", XYXY) == XYWH
    return [x, y, x + right, y + bottom] if given_as_size else [x, y, right, bottom]


def _fits(annotation: Mapping[str, Any], box: np.ndarray) -> bool:
    """Whether the given box, if there is one, is that of the mask (4,) XYXY, up to some slack."""
    if annotation.get("bbox_mode", XYXY) not in (XYXY, XYWH) or annotation.get("bbox") is None:
        return True
    pixels, share = BOX_SLACK
    slack = pixels + share * float((box[2:] - box[:2]).max())
    return bool((np.abs(np.array(_corners(annotation)) - box) <= slack).all())
