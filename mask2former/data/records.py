"""The datasets of a run: one process of each machine reads a dataset, and all of them share its records.

The reading process also extracts what a loader must know of every record, so that no other process has to
unpickle them all.

Shapes: `N` records.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from mask2former.data.catalog import DatasetCatalog, Metadata, MetadataCatalog, Record
from mask2former.data.errors import DatasetError
from mask2former.utils.comm import world_size
from mask2former.utils.record_cache import PackedRecords, is_picklable, read_once_per_machine

COMMON_FACTS = ("thing_classes", "stuff_classes", "ignore_label")  # equal in concatenated datasets


class LoadedDataset(NamedTuple):
    """The records and metadata of one dataset, or of several in a row.

    Attributes:
        records: the N records.
        metadata: facts about the dataset, or about the first of several.
        categories: of each record the categories in its annotations, a tuple without repeats.
        is_empty: (N,) bool: the record has annotations, but all of them are crowd regions.
    """

    records: PackedRecords
    metadata: Metadata
    categories: PackedRecords
    is_empty: np.ndarray

    def select(self, index: Any) -> LoadedDataset:
        """Return the dataset with the records at `index` only, a slice or an array."""
        records, categories = self.records.select(index), self.categories.select(index)
        return LoadedDataset(records, self.metadata, categories, self.is_empty[index])


class Datasets:
    """The datasets of one run; each is read once, so their files must not change while the run lasts."""

    def __init__(self) -> None:
        self._loaded: dict[str, LoadedDataset] = {}
        self._prepared: dict[str, list[Record]] = {}
        self._completed: set[str] = set()

    def prepare(self, name: str, records: list[Record]) -> None:
        """Let `load` take these records, which this process has read already."""
        self._prepared[name] = records

    def load(self, name: str) -> LoadedDataset:
        """Return a dataset; the first time all processes must call this together.

        Afterwards the metadata of the dataset is the same in all processes, facts found by reading included.

        Raises:
            DatasetError: the dataset is unknown or broken; raised in all processes.
        """
        if name not in self._loaded:
            read = partial(_read, name, self._prepared.pop(name, None))
            packed, (is_empty, facts) = read_once_per_machine(read)
            metadata = MetadataCatalog.get(name)
            if world_size() > 1:
                metadata.adopt(facts)
            count = len(is_empty)
            records, categories = packed.select(slice(count)), packed.select(slice(count, None))
            self._loaded[name] = LoadedDataset(records, metadata, categories, is_empty)
        return self._loaded[name]

    def complete(self, name: str, add: Callable[[Sequence[Record], Metadata], Iterable[Record]]) -> None:
        """Replace the records of a dataset by `add(records, metadata)`, which returns as many; only once.

        What is known of each, `categories` and `is_empty`, stays. All processes must call this together.

        Raises:
            DatasetError: as `load` and `add`; raised in all processes.
        """
        loaded = self.load(name)
        if name not in self._completed:
            records, _ = read_once_per_machine(lambda: (add(loaded.records, loaded.metadata), None))
            self._loaded[name] = loaded._replace(records=records)
            self._completed.add(name)

    def load_concatenated(self, names: Sequence[str]) -> LoadedDataset:
        """Return the records of several datasets in a row, with the metadata of the first.

        Raises:
            DatasetError: a dataset is unknown or broken, or they differ in their classes or ignore label.
        """
        parts = [self.load(name) for name in names]
        for fact, part in itertools.product(COMMON_FACTS, parts):
            if part.metadata.get(fact) != parts[0].metadata.get(fact):
                raise DatasetError(
                    f"datasets '{names[0]}' and '{part.metadata.name}' cannot be joined: '{fact}' differs"
                )
        return LoadedDataset(
            PackedRecords.concatenate([part.records for part in parts]),
            parts[0].metadata if parts else Metadata("none"),
            PackedRecords.concatenate([part.categories for part in parts]),
            np.concatenate([np.zeros(0, bool), *(part.is_empty for part in parts)]),
        )


def _read(name: str, records: list[Record] | None) -> tuple[list[Any], tuple[np.ndarray, dict[str, Any]]]:
    """Return the records followed by the categories of each, then `is_empty` and the picklable metadata."""
    if records is None:
        records = DatasetCatalog.get(name)
    is_empty = np.array([_has_only_crowds(record) for record in records], bool)
    facts = MetadataCatalog.get(name).as_dict() if world_size() > 1 else {}
    sent = {key: fact for key, fact in facts.items() if is_picklable(fact)}
    return [*records, *map(_categories, records)], (is_empty, sent)


def record_annotations(record: Record) -> list[dict[str, Any]]:
    """Return the annotations of an image, or those of all frames of a video."""
    listed = record.get("annotations") or ()
    return [*itertools.chain.from_iterable(listed)] if "file_names" in record else [*listed]


def _categories(record: Record) -> tuple[Any, ...]:
    listed = record_annotations(record) or record.get("segments_info") or ()
    return tuple({annotation.get("category_id") for annotation in listed})


def _has_only_crowds(record: Record) -> bool:
    return "annotations" in record and all(a.get("iscrowd", 0) for a in record_annotations(record))
