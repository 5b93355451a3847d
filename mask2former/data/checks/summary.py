"""What a dataset holds, summed up over its records; and what only a look at all of them shows.

Shapes: `H, W` the sides of an image in pixels.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mask2former.data.catalog import Record
from mask2former.data.checks.record import RecordFacts, Warned
from mask2former.data.ground_truth.readers import Size

SIZE_BINS = {"small": 32**2, "medium": 96**2 + 1, "large": np.inf}  # COCO's; areas are below these
QUANTILES = {"least": 0.0, "5%": 0.05, "25%": 0.25, "median": 0.5, "75%": 0.75, "95%": 0.95, "most": 1.0}
GROUPS = "things", "stuff", "objects"  # the last where a dataset does not tell the others apart
SHOWN = 10  # of broken records and of each kind of warning
REPEATED = {
    "image_id": "image ids that several records have",
    "file_name": "images that several records show",
}
SHARED = "images that the other dataset holds too"


@dataclass
class Statistics:
    """The sum over records.

    Args:
        names: of the classes.
        things: contiguous ids of the things among them, where a dataset has things and stuff; else None.
    """

    names: Sequence[str]
    things: frozenset[int] | None = None
    images: int = 0
    broken: int = 0
    first_broken: list[str] = field(default_factory=list)
    crowds: int = 0
    objects_of: Counter[int] = field(default_factory=Counter)
    images_of: Counter[int] = field(default_factory=Counter)
    areas: dict[str, array[int]] = field(default_factory=lambda: defaultdict(lambda: array("q")))
    sizes: Counter[Size] = field(default_factory=Counter)
    objects_in: Counter[int] = field(default_factory=Counter)
    most: tuple[int, str] = (0, "")
    forms: Counter[str] = field(default_factory=Counter)
    unlabeled: list[int] = field(default_factory=lambda: [0, 0])
    warned: Counter[str] = field(default_factory=Counter)
    first_warned: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, facts: RecordFacts) -> None:
        """Count one record."""
        self.images += 1
        if facts.error:
            self.add_broken(facts.error)
            return
        self.crowds += facts.crowds
        self.forms.update(facts.forms)
        self.sizes[facts.size] += 1
        self.objects_of.update(facts.classes)
        self.images_of.update(set(facts.classes))
        self.objects_in[len(facts.classes)] += 1
        self.most = max(self.most, (len(facts.classes), facts.file_name), key=lambda pair: pair[0])
        for category, area in zip(facts.classes, facts.areas, strict=True):
            self.areas[self._group(category)].append(area)
        if facts.unlabeled is not None:
            self.unlabeled[0] += facts.unlabeled
            self.unlabeled[1] += facts.size[0] * facts.size[1]
        for warned in facts.warnings:
            self.add_warning(warned)

    def add_broken(self, reason: str) -> None:
        """Count a broken record."""
        self.broken += 1
        self.first_broken += [reason] if self.broken <= SHOWN else []

    def add_warning(self, warned: Warned) -> None:
        """Count a warning."""
        self.warned[warned.kind] += 1
        self.first_warned[warned.kind] += [warned.where] if self.warned[warned.kind] <= SHOWN else []

    def _group(self, category: int) -> str:
        things, stuff, objects = GROUPS
        if self.things is None:
            return objects
        return things if category in self.things else stuff

    def card(self, queries: int) -> dict[str, Any]:
        """All of it as JSON takes it; `queries` is how many objects the model can tell in an image."""
        return {
            "images": self.images,
            "broken": {"count": self.broken, "first": self.first_broken},
            "images_without_objects": self.objects_in[0],
            "crowd_regions": self.crowds,
            "representation": dict(self.forms),
            "share_of_pixels_without_class": _share(*self.unlabeled),
            "image_sizes": size_facts(self.sizes),
            "objects_in_an_image": {
                "mean": _share(self.objects_of.total(), self.objects_in.total()),
                "most": self.most[0],
                "most_in": self.most[1],
                "queries": queries,
                "images_with_more_than_queries": sum(
                    images for objects, images in self.objects_in.items() if objects > queries
                ),
            },
            "object_sizes": {group: area_facts(self.areas[group]) for group in GROUPS if group in self.areas},
            "classes": [
                {"name": name, "images": self.images_of[k], "objects": self.objects_of[k]}
                for k, name in enumerate(self.names)
            ],
            "never_seen": [name for k, name in enumerate(self.names) if not self.objects_of[k]],
            "warnings": {
                kind: {"count": count, "first": self.first_warned[kind]}
                for kind, count in self.warned.items()
            },
        }


def area_facts(areas: Sequence[int]) -> dict[str, Any]:
    """How many of at least one area (in pixels) are small, medium and large as COCO says, and quantiles."""
    bins = np.searchsorted(list(SIZE_BINS.values()), areas, side="right")
    counts = np.bincount(bins, minlength=len(SIZE_BINS)).tolist()
    quantiles = np.quantile(areas, list(QUANTILES.values()), method="nearest").tolist()
    return {
        "count": len(areas),
        **dict(zip(SIZE_BINS, counts, strict=True)),
        "area": dict(zip(QUANTILES, quantiles, strict=True)),
    }


def size_facts(sizes: Mapping[Size, int]) -> dict[str, Any]:
    """Which sizes (H, W) images have, by their areas, and the commonest."""
    if not sizes:
        return {}
    by_area = sorted(sizes, key=lambda size: size[0] * size[1])
    commonest = max(sizes, key=lambda size: sizes[size])
    return {
        "different": len(sizes),
        "smallest": list(by_area[0]),
        "largest": list(by_area[-1]),
        "commonest": list(commonest),
        "images_of_commonest": sizes[commonest],
    }


def repeated(records: Iterable[Record]) -> list[Warned]:
    """A warning for each image id and each image that several records have."""
    seen: dict[str, Counter[str]] = {key: Counter() for key in REPEATED}
    for record in records:
        for key, counter in seen.items():
            counter.update([repr(record[key])] if key in record else [])
    return [
        Warned(REPEATED[key], f"{value}: {count} records")
        for key, counter in seen.items()
        for value, count in counter.items()
        if count > 1
    ]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
