"""Summary of a dataset over all its records, and checks that need all of them.

Shapes: `H, W` the sides of an image in pixels.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mask2former.data.catalog import Record
from mask2former.data.checks.record import DataWarning, RecordSummary
from mask2former.data.ground_truth.readers import Size
from mask2former.data.records import record_annotations

SIZE_BINS = {"small": 32**2, "medium": 96**2 + 1, "large": np.inf}  # COCO's; areas are below these
QUANTILES = {"least": 0.0, "5%": 0.05, "25%": 0.25, "median": 0.5, "75%": 0.75, "95%": 0.95, "most": 1.0}
SHOWN = 10  # broken records, and warnings of each kind
REPEATED = {
    "image_id": "image ids that several records have",
    "file_name": "images that several records show",
}


def summarize_dataset(
    records: Sequence[RecordSummary],
    names: Sequence[str],
    *,
    things: Collection[int] | None = None,
    queries: int,
    errors: Iterable[str] = (),
    warnings: Iterable[DataWarning] = (),
) -> dict[str, Any]:
    """Return what a dataset holds, as JSON values.

    Args:
        records: the summaries of all records.
        names: class names.
        things: contiguous ids of the things, if the dataset has things and stuff; else None.
        queries: number of objects that the model can find in an image.
        errors: of records that could not be made.
        warnings: besides those of the records.
    """
    broken = [record.error for record in records if record.error] + list(errors)
    sound = [record for record in records if not record.error]
    objects_in = [len(record.classes) for record in sound]
    fullest = max(sound, key=lambda record: len(record.classes), default=RecordSummary(""))
    objects_of = Counter(category for record in sound for category in record.classes)
    images_of = Counter(category for record in sound for category in set(record.classes))
    labeled = [record for record in sound if record.unlabeled is not None]
    by_kind = defaultdict(list)
    for warning in [*(warning for record in sound for warning in record.warnings), *warnings]:
        by_kind[warning.kind].append(warning.where)
    return {
        "images": len(records),
        "broken": _examples(broken),
        "images_without_objects": objects_in.count(0),
        "crowd_regions": sum(record.crowds for record in sound),
        "representation": dict(sum((record.forms for record in sound), Counter())),
        "share_of_pixels_without_class": _share(
            sum(record.unlabeled or 0 for record in labeled),
            sum(math.prod(record.size) for record in labeled),
        ),
        "image_sizes": size_report(Counter(record.size for record in sound)),
        "objects_in_an_image": {
            "mean": _share(sum(objects_in), len(sound)),
            "most": len(fullest.classes),
            "most_in": fullest.file_name if fullest.classes else "",
            "queries": queries,
            "images_with_more_than_queries": sum(count > queries for count in objects_in),
        },
        "object_sizes": {group: area_report(areas) for group, areas in _areas(sound, things).items()},
        "classes": [
            {"name": name, "images": images_of[k], "objects": objects_of[k]} for k, name in enumerate(names)
        ],
        "never_seen": [name for k, name in enumerate(names) if not objects_of[k]],
        "warnings": {kind: _examples(where) for kind, where in by_kind.items()},
    }


def _examples(items: Sequence[str]) -> dict[str, Any]:
    return {"count": len(items), "first": items[:SHOWN]}


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _areas(records: Iterable[RecordSummary], things: Collection[int] | None) -> dict[str, list[int]]:
    """Return the areas of things and of stuff, or of all objects if the dataset does not distinguish them."""
    areas: dict[str, list[int]] = {"things": [], "stuff": [], "objects": []}
    for record in records:
        for category, area in zip(record.classes, record.areas, strict=True):
            group = "objects" if things is None else "things" if category in things else "stuff"
            areas[group].append(area)
    return {group: found for group, found in areas.items() if found}


def area_report(areas: Sequence[int]) -> dict[str, Any]:
    """Return the number of small, medium and large areas in pixels, as COCO defines them, and quantiles."""
    bins = np.searchsorted(list(SIZE_BINS.values()), areas, side="right")
    counts = np.bincount(bins, minlength=len(SIZE_BINS)).tolist()
    quantiles = np.quantile(areas, list(QUANTILES.values()), method="nearest").tolist()
    return {
        "count": len(areas),
        **dict(zip(SIZE_BINS, counts, strict=True)),
        "area": dict(zip(QUANTILES, quantiles, strict=True)),
    }


def size_report(sizes: Mapping[Size, int]) -> dict[str, Any]:
    """Return the number of different sizes (H, W), the extremes by area, and the most common size."""
    if not sizes:
        return {}
    by_area = sorted(sizes, key=math.prod)
    commonest = max(sizes, key=lambda size: sizes[size])
    shown = {"smallest": by_area[0], "largest": by_area[-1], "commonest": commonest}
    return {
        "different": len(sizes),
        **{name: list(size) for name, size in shown.items()},
        "images_of_commonest": sizes[commonest],
    }


def video_report(videos: Sequence[Record]) -> dict[str, Any]:
    """Return the numbers of videos, and of their frames, tracks and crowds."""
    lengths = [record["length"] for record in videos]
    tracks = [{a["id"] for a in record_annotations(record) if not a.get("iscrowd", 0)} for record in videos]
    crowds = [{a["id"] for a in record_annotations(record) if a.get("iscrowd", 0)} for record in videos]
    counts = [len(found) for found in tracks]
    return {
        "count": len(videos),
        "frames_in_a_video": {"least": min(lengths, default=0), "most": max(lengths, default=0)},
        "tracks": sum(counts),
        "tracks_in_a_video": {"least": min(counts, default=0), "most": max(counts, default=0)},
        "crowds": sum(map(len, crowds)),
    }


def repeated(records: Sequence[Record]) -> list[DataWarning]:
    """Return a warning for each image id and each image that several records have."""
    return [
        DataWarning(kind, f"{value}: {count} records")
        for key, kind in REPEATED.items()
        for value, count in Counter(repr(record[key]) for record in records if key in record).items()
        if count > 1
    ]
