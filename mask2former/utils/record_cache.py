"""Records that one process of each machine reads and packs into a file, which all its processes map.

Records are pickled one by one into one buffer. A list of dicts would be copied into each data worker bit by
bit, because reading a Python object writes its reference count.

Shapes: `N` records.
"""

from __future__ import annotations

import logging
import pickle
import platform
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np

from mask2former.utils.comm import all_gather_object, barrier, rank, world_size

logger = logging.getLogger(__name__)
Read = Callable[[], tuple[Iterable[Any], Any]]


class PackedRecords(Sequence[Any]):
    """Pickled records in a few buffers; indexing unpickles one.

    Args:
        buffers: arrays of bytes.
        spans: (N, 3) int64: of each record the index of its buffer, its first byte, the one after its last.
    """

    def __init__(self, buffers: Sequence[np.ndarray], spans: np.ndarray) -> None:
        self._buffers = list(buffers)
        self._spans = spans

    @classmethod
    def pack(cls, records: Iterable[Any]) -> PackedRecords:
        """Pack records into one buffer."""
        pickled = [pickle.dumps(record, pickle.HIGHEST_PROTOCOL) for record in records]
        ends = np.fromiter(accumulate(map(len, pickled), initial=0), np.int64)
        spans = np.stack([np.zeros_like(ends[1:]), ends[:-1], ends[1:]], axis=1)
        return cls([np.frombuffer(b"".join(pickled), np.uint8)], spans)

    @classmethod
    def concatenate(cls, parts: Sequence[PackedRecords]) -> PackedRecords:
        """Return the records of all parts in a row; their buffers are shared, not copied."""
        firsts = accumulate((len(part._buffers) for part in parts), initial=0)
        spans = [part._spans + np.array([first, 0, 0]) for part, first in zip(parts, firsts, strict=False)]
        buffers = chain.from_iterable(part._buffers for part in parts)
        return cls([*buffers], np.concatenate([np.zeros((0, 3), np.int64), *spans]))

    def select(self, index: Any) -> PackedRecords:
        """Return the records at `index`, a slice or an array, in the same buffers."""
        return PackedRecords(self._buffers, self._spans[index])

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: Any) -> Any:
        buffer, start, end = self._spans[index]
        return pickle.loads(self._buffers[buffer][start:end].data)


def read_once_per_machine(read: Read) -> tuple[PackedRecords, Any]:
    """Return the records and the extra object that `read()` returns; one process of each machine calls it.

    All processes must call this together, and what `read()` returns must be picklable. The records reach the
    other processes by a file in the temporary folder ($TMPDIR), which is removed once all have mapped it.

    Raises:
        Exception: what `read()` raised in one process is raised in all of them.
    """
    if world_size() == 1:
        records, extra = read()
        return PackedRecords.pack(records), extra
    machines = all_gather_object(platform.node())
    reader = machines.index(machines[rank()])
    with ExitStack() as until_mapped:
        own = _written_or_error(read, until_mapped) if rank() == reader else None
        outcomes = all_gather_object(own if is_picklable(own) else RuntimeError(repr(own)))
        if error := next((outcome for outcome in outcomes if isinstance(outcome, Exception)), None):
            raise error from own if isinstance(own, Exception) else None
        file, spans, extra = outcomes[reader]
        try:
            buffer = np.asarray(np.load(file, mmap_mode="r"))
        except FileNotFoundError:  # equal host names, but separate file systems, as containers may have
            buffer = None
        barrier()  # the file is removed after all have opened it
    if buffer is None:
        logger.info("the file of process %d cannot be opened here: this process reads by itself", reader)
        records, extra = read()
        return PackedRecords.pack(records), extra
    return PackedRecords([buffer], spans), extra


def _written_or_error(read: Read, until_mapped: ExitStack) -> tuple[Path, np.ndarray, Any] | Exception:
    """Return the file, the spans and the extra object, or the error."""
    try:
        records, extra = read()
        packed = PackedRecords.pack(records)
        folder = tempfile.TemporaryDirectory(prefix="mask2former_", ignore_cleanup_errors=True)
        file = Path(until_mapped.enter_context(folder), "records.npy")
        np.save(file, packed._buffers[0])
    except Exception as error:
        return error
    return file, packed._spans, extra


def is_picklable(value: Any) -> bool:
    """Return True if another process can receive `value`."""
    try:
        pickle.loads(pickle.dumps(value))
    except Exception:  # pickle reports what it cannot do by many kinds of error
        return False
    return True
