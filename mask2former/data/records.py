"""The records of datasets by name: one process of each machine reads them, all of the machine share them.

What a loader must know of every record is found out by the one that has them all at hand, so that the others
need not go through them. Within `records_remembered` a dataset is read once.

Shapes: `N` records.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from mask2former.data.catalog import DatasetCatalog, Metadata, MetadataCatalog, Record
from mask2former.data.errors import DatasetError
from mask2former.utils.comm import world_size
from mask2former.utils.shared_memory import PackedRecords, read_once_a_machine

SHARED_FACTS = ("thing_classes", "stuff_classes", "ignore_label")
Facts = dict[str, Any]


class DatasetRecords(NamedTuple):
    """The records of one dataset or of several.

    Attributes:
        records: the N records.
        shown: of each the categories that its annotations have, a tuple.
        empty: (N,) bool: it has annotations, and none of them is of an instance that is no crowd.
    """

    records: PackedRecords
    shown: PackedRecords
    empty: np.ndarray[Any, Any]

    def chosen(self, places: Any) -> DatasetRecords:
        """Those at these places, a slice or an array."""
        return DatasetRecords(self.records.chosen(places), self.shown.chosen(places), self.empty[places])


@dataclass
class _Memory:
    read: dict[str, DatasetRecords] = field(default_factory=dict)
    at_hand: dict[str, list[Record]] = field(default_factory=dict)  # read by this process, not yet shared


_memory: ContextVar[_Memory | None] = ContextVar("memory", default=None)


@contextmanager
def records_remembered() -> Iterator[None]:
    """Within it, each dataset is read once: files of data do not change under a command that is at work.

    What is kept is packed, and once a machine; it is what training holds anyway.
    """
    token = _memory.set(_Memory())
    try:
        yield
    finally:
        _memory.reset(token)


def read_here(name: str) -> list[Record]:
    """The records of a dataset, for this process to look through.

    Within `records_remembered` they are at hand when `dataset_records` is asked for them next.
    """
    records = DatasetCatalog.get(name)
    if (memory := _memory.get()) is not None:
        memory.at_hand[name] = records
    return records


def dataset_records(name: str) -> DatasetRecords:
    """The records of a dataset; all processes must ask for them together.

    Facts about datasets that became known by reading are known to all of them afterwards.

    Raises:
        DatasetError: no dataset has that name, or it is broken: the same in all processes.
    """
    memory = _memory.get()
    if memory is not None and name in memory.read:
        return memory.read[name]
    packed, (empty, facts) = read_once_a_machine(partial(_read, name))
    for entry, known in facts.items():
        MetadataCatalog.get(entry).adopt(known, all_are_known=entry == name)
    count = len(empty)
    found = DatasetRecords(packed.chosen(slice(count)), packed.chosen(slice(count, None)), empty)
    if memory is not None:
        memory.read[name] = found
        memory.at_hand.pop(name, None)
    return found


def read_datasets(names: Sequence[str]) -> tuple[DatasetRecords, Metadata]:
    """The records of all datasets in a row, and the metadata of the first; as `dataset_records`.

    Raises:
        DatasetError: a name is unknown, or the datasets differ in their classes or ignore label.
    """
    parts = [dataset_records(name) for name in names]
    entries = [MetadataCatalog.get(name) for name in names]
    for fact, entry in itertools.product(SHARED_FACTS, entries):
        if entry.get(fact) != entries[0].get(fact):
            raise DatasetError(f"datasets '{names[0]}' and '{entry.name}' cannot be joined: '{fact}' differs")
    joined = DatasetRecords(
        PackedRecords.joined([part.records for part in parts]),
        PackedRecords.joined([part.shown for part in parts]),
        np.concatenate([np.zeros(0, bool), *(part.empty for part in parts)]),
    )
    return joined, entries[0] if entries else Metadata("none")


def _read(name: str) -> tuple[list[Any], tuple[np.ndarray[Any, Any], dict[str, Facts]]]:
    """In the process that reads: records, and after them what each shows; `empty`, and facts for others."""
    before = MetadataCatalog.facts_set()
    memory = _memory.get()
    records = memory.at_hand.pop(name, None) if memory is not None else None
    if records is None:
        records = DatasetCatalog.get(name)
    empty = np.array([is_empty(record) for record in records], bool)
    facts = _new_facts(name, before) if world_size() > 1 else {}
    return [*records, *map(categories_shown, records)], (empty, facts)


def _new_facts(name: str, before: dict[str, Facts]) -> dict[str, Facts]:
    """Entry -> facts that other processes may lack: all of `name`, and of others what reading it has set."""
    set_now = {
        entry: facts for entry, facts in MetadataCatalog.facts_set().items() if facts != before.get(entry)
    }
    found = {**set_now, name: MetadataCatalog.get(name).as_dict()}
    return {
        entry: {key: fact for key, fact in facts.items() if _can_be_sent(fact)}
        for entry, facts in found.items()
    }


def _can_be_sent(fact: Any) -> bool:
    try:
        pickle.dumps(fact)
    except Exception:  # pickle reports what it cannot do by many kinds of error
        return False
    return True


def categories_shown(record: Record) -> tuple[Any, ...]:
    """The categories of a record's annotations, each once."""
    listed = record.get("annotations") or record.get("segments_info") or ()
    return tuple({annotation.get("category_id") for annotation in listed})


def is_empty(record: Record) -> bool:
    """Whether a record knows of annotations, but of no instance that is no crowd."""
    return "annotations" in record and all(a.get("iscrowd", 0) for a in record["annotations"] or ())
