"""What one process of a machine reads, in memory that all processes of the machine share.

Records are pickled one by one into one buffer. A list of dicts would be copied into each worker bit by bit,
since reading an object writes its reference count. Where several processes run, the buffer is a file without
a name in memory, which the others map: it is in no folder, and gone with the last of them, however they end.

Shapes: `N` records.
"""

from __future__ import annotations

import logging
import mmap
import os
import pickle
import platform
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from mask2former.utils.comm import all_gather_object, rank, world_size

logger = logging.getLogger(__name__)
Array = np.ndarray[Any, Any]
Read = Callable[[], tuple[Iterable[Any], Any]]


class PackedRecords(Sequence[Any]):
    """Records in a few buffers; each is made anew when it is asked for.

    Args:
        buffers: bytes.
        spans: (N, 3): the number of a record's buffer, and from where to where it lies there.
    """

    def __init__(self, buffers: Sequence[Array], spans: Array) -> None:
        self._buffers = list(buffers)
        self._spans = spans

    @classmethod
    def of(cls, records: Iterable[Any]) -> PackedRecords:
        """The records, packed in memory of this process."""
        file = BytesIO()
        ends = write_records(records, file)
        return cls.packed(np.frombuffer(file.getbuffer(), np.uint8), ends)

    @classmethod
    def packed(cls, buffer: Array, ends: Array) -> PackedRecords:
        """What `write_records` has written, and where it said that each record ends."""
        return cls([buffer], np.stack([np.zeros_like(ends[1:]), ends[:-1], ends[1:]], axis=1))

    @classmethod
    def joined(cls, parts: Sequence[PackedRecords]) -> PackedRecords:
        """The records of all parts in a row."""
        firsts = accumulate((len(part._buffers) for part in parts), initial=0)
        moved = [part._spans + np.array([first, 0, 0]) for part, first in zip(parts, firsts, strict=False)]
        buffers = chain.from_iterable(part._buffers for part in parts)
        return cls([*buffers], np.concatenate([np.zeros((0, 3), np.int64), *moved]))

    def chosen(self, places: Any) -> PackedRecords:
        """The records at these places, a slice or an array, in the same memory."""
        return PackedRecords(self._buffers, self._spans[places])

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: Any) -> Any:
        number, start, end = self._spans[index]
        return pickle.loads(self._buffers[number][start:end].data)


def write_records(records: Iterable[Any], file: BinaryIO) -> Array:
    """Write the records one after the other; (N + 1,) int64: 0, and where each ends."""
    sizes = (file.write(pickle.dumps(record, pickle.HIGHEST_PROTOCOL)) for record in records)
    return np.fromiter(accumulate(sizes, initial=0), np.int64)


class _Place(NamedTuple):
    """Where processes of the same machine find what one of them wrote.

    Attributes:
        process: the one that has the file open.
        file: its descriptor there.
        identity: device, number and size of the file, by which it is told from any other.
        contents: from where to where it says where the records end, and what there is besides.
    """

    process: int
    file: int
    identity: tuple[int, int, int]
    contents: slice


def read_once_a_machine(read: Read) -> tuple[PackedRecords, Any]:
    """The records that `read()` returns and what it returns besides; one process of each machine calls it.

    All processes must come here together. What `read()` returns must be picklable.

    Raises:
        Exception: what `read()` raises in one process, in all of them.
    """
    if world_size() == 1 or not hasattr(os, "memfd_create"):
        return _read_alone(read)
    machines = all_gather_object(_machine())
    reader = machines.index(machines[rank()])
    with os.fdopen(os.memfd_create("records"), "wb") as file:
        found = _place_or_error(read, file) if rank() == reader else None
        places = all_gather_object(_portable(found))
        if errors := [(number, place) for number, place in enumerate(places) if isinstance(place, Exception)]:
            number, error = errors[0]  # the same in all processes
            raise found if number == rank() and isinstance(found, Exception) else error
        shared = _open(places[reader])
        all_gather_object(None)  # from here on all have the file
    if shared is None:
        logger.info("what process %d has read cannot be seen here; this process reads it again", reader)
        return _read_alone(read)
    return shared


def _read_alone(read: Read) -> tuple[PackedRecords, Any]:
    records, besides = read()
    return PackedRecords.of(records), besides


def _machine() -> tuple[str, ...]:
    """What processes have in common that see each other's open files."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    return (
        platform.node(),
        boot.read_text() if boot.exists() else "",
        os.readlink(space) if space.is_symlink() else str(os.getpid()),
    )


def _place_or_error(read: Read, file: BinaryIO) -> _Place | Exception:
    """Read and write; where others find it, or why not."""
    try:
        records, besides = read()
        ends = write_records(records, file)
        start = int(ends[-1])
        contents = slice(start, start + file.write(pickle.dumps((ends, besides), pickle.HIGHEST_PROTOCOL)))
        file.flush()
    except Exception as error:
        return error
    return _Place(os.getpid(), file.fileno(), _identity(file.fileno()), contents)


def _portable(found: _Place | Exception | None) -> _Place | Exception | None:
    """The same, or in place of an error that cannot be sent one that can."""
    try:
        pickle.loads(pickle.dumps(found))
    except Exception:
        return RuntimeError(f"{type(found).__name__}: {found}")
    return found


def _identity(file: int) -> tuple[int, int, int]:
    status = os.fstat(file)
    return status.st_dev, status.st_ino, status.st_size


def _open(place: _Place) -> tuple[PackedRecords, Any] | None:
    """What lies there, mapped; None where this process has no way to it."""
    try:
        file = os.open(f"/proc/{place.process}/fd/{place.file}", os.O_RDONLY)
    except OSError:
        return None
    try:
        if _identity(file) != place.identity:
            return None
        memory = np.frombuffer(mmap.mmap(file, 0, access=mmap.ACCESS_READ), np.uint8)
    finally:
        os.close(file)
    ends, besides = pickle.loads(memory[place.contents].data)
    return PackedRecords.packed(memory, ends), besides
