"""Recognition of failed memory allocations, and arrays that lie in files because memory may be too small."""

import mmap
import tempfile
from typing import Any

import numpy as np
import torch

# Texts of PyTorch's RuntimeErrors: of the CUDA driver, and of the CPU's allocator
MESSAGES = ("out of memory", "allocate memory", "not enough memory")
IN_MEMORY = 2**28  # bytes; larger arrays of `new_array` lie in files

Array = np.ndarray[Any, np.dtype[Any]]


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an allocation failed, on a GPU or on the host (which has no error class of its own)."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in MESSAGES)


def new_array(shape: tuple[int, ...], kind: Any, in_memory: int | None = None) -> Array:
    """Return an array of zeros. If it takes more than `in_memory` bytes, it lies in a temporary file.

    The file has no name, and ends with the array. It is in the folder that TMPDIR names; a folder that is
    itself in memory saves none. `release_pages` keeps such an array from filling the process' memory.
    """
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize
    if size <= (IN_MEMORY if in_memory is None else in_memory):
        return np.zeros(shape, kind)
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        return np.frombuffer(mmap.mmap(file.fileno(), size), kind).reshape(shape)


def file_of(array: Array) -> mmap.mmap | None:
    """Return the mapped file in which an array lies, None for one in memory."""
    base: Any = array
    while base is not None:
        if isinstance(base, mmap.mmap):
            return base
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    return None


def release_pages(array: Array) -> None:
    """Let an array in a file be in memory no longer: it is read from its file when it is used again."""
    mapped = file_of(array)
    if mapped is not None and hasattr(mapped, "madvise"):  # not on Windows
        mapped.madvise(mmap.MADV_DONTNEED)
