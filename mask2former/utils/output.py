"""Standard output and standard error of commands, which may be closed, or a file on a full disk."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class _Descriptor(io.FileIO):
    """Raw stream that drops what cannot be written, and keeps the error."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write `data`, or drop it after an error, and return its size."""
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            return memoryview(data).nbytes


def _tolerant(stream: TextIO) -> tuple[_Descriptor, TextIO]:
    stream.flush()
    raw = _Descriptor(stream.fileno(), "w", closefd=False)
    buffer = io.BufferedWriter(raw)
    buffering = bool(stream.line_buffering), bool(getattr(stream, "write_through", False))
    return raw, io.TextIOWrapper(buffer, stream.encoding, stream.errors, None, *buffering)


@contextmanager
def tolerant_output() -> Iterator[None]:
    """Let a command finish when nobody reads its output, as in `mask2former predict ... | head -1`.

    A reader that has gone is no error. If output could not be written for another reason, as on a full disk,
    the command finishes too, and its exit code is 1. Streams that are not those of the process, as a
    notebook's, stay as they are. It is also a decorator.

    Raises:
        SystemExit: output is lost.
    """
    names = [name for name in ("stdout", "stderr") if getattr(sys, name) is getattr(sys, f"__{name}__")]
    before = {name: getattr(sys, name) for name in names}
    raws = {}
    for name, stream in before.items():
        if stream is None:  # the descriptor is closed
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        else:
            raws[name], wrapper = _tolerant(stream)
            setattr(sys, name, wrapper)
    try:
        yield
    finally:
        for name in names:
            getattr(sys, name).flush()
        error = raws["stdout"].error if "stdout" in raws else None
        if lost := error and not isinstance(error, BrokenPipeError):
            sys.stderr.write(f"error: standard output is incomplete ({error})\n")
            sys.stderr.flush()
        vars(sys).update(before)
        if lost and not isinstance(sys.exc_info()[1], Exception):
            raise SystemExit(1)
