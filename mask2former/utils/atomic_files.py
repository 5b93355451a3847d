"""Files that appear complete or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

UNFINISHED = ".unfinished"  # part of the name of a file or a folder that is being written


@contextmanager
def write_errors_named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let errors of the operating system in the block name the file; those of a full disk do not."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a path for a file that replaces `path` after the block, or is deleted if the block raises.

    Its name is hidden and has the suffix of `path`.
    """
    unfinished = path.with_name(f"{UNFINISHED}-{path.name}")
    try:
        with write_errors_named(path):
            yield unfinished
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that replaces `path` after the block, once it is on disk."""
    with atomic_path(path) as unfinished, open(unfinished, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Flush the names in a folder to disk, where the platform can."""
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(folder)
        os.close(folder)
