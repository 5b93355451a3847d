"""Standard output and standard error of commands, which may be closed, full, or lack characters."""

import argparse
import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO

from mask2former.utils.messages import MessageFormatter, escaped, legible


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


class _Terminal(io.TextIOWrapper):
    """Text stream that escapes control characters, and characters that its encoding lacks."""

    def __init__(self, stream: TextIO) -> None:
        stream.flush()
        self.descriptor = _Descriptor(stream.fileno(), "w", closefd=False)
        buffering = bool(stream.line_buffering), bool(getattr(stream, "write_through", False))
        super().__init__(
            io.BufferedWriter(self.descriptor), stream.encoding, "backslashreplace", None, *buffering
        )

    def write(self, text: str) -> int:
        """Write text; a carriage return at its beginning stays, as progress bars need it."""
        start = "\r" if text.startswith("\r") else ""
        super().write(start + escaped(text[len(start) :], keep="\n\t"))
        return len(text)


def print_error(error: object) -> None:
    """Print the error that ends a command, or a part of its work, on stderr in one line."""
    print(f"error: {legible(error)}", file=sys.stderr)  # noqa: T201


class Parser(argparse.ArgumentParser):
    """A parser whose errors, which repeat what was typed, are `legible`."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the error, and exit with code 2."""
        super().error(legible(message))


@contextmanager
def tolerant_output() -> Iterator[None]:
    """Let a command finish when nobody reads its output, as in `mask2former predict ... | head -1`.

    A reader that has gone is no error. If output could not be written for another reason, as on a full disk,
    the command finishes too, and its exit code is 1. Control characters, and characters that the terminal
    lacks, are escaped. Streams that are not those of the process, as a notebook's, stay as they are. It is
    also a decorator.

    Raises:
        SystemExit: output is lost.
    """
    before = {
        name: getattr(sys, name)
        for name in ("stdout", "stderr")
        if getattr(sys, name) is getattr(sys, f"__{name}__")
    }
    streams = {  # a stream is None if its descriptor is closed
        name: open(os.devnull, "w") if stream is None else _Terminal(stream)  # noqa: SIM115
        for name, stream in before.items()
    }
    if logging.lastResort:  # prints warnings of commands that have no log
        logging.lastResort.setFormatter(MessageFormatter("%(levelname)s: %(message)s"))
    vars(sys).update(streams)
    try:
        yield
    finally:
        for stream in streams.values():
            stream.flush()
        vars(sys).update(before)
        if _is_lost(streams.get("stdout")) and not isinstance(sys.exc_info()[1], Exception):
            raise SystemExit(1)


def _is_lost(stream: TextIO | None) -> bool:
    """Return True, after an error on stderr, if what was written to `stream` is lost."""
    error = stream.descriptor.error if isinstance(stream, _Terminal) else None
    if error is None or isinstance(error, BrokenPipeError):
        return False
    print_error(f"standard output is incomplete ({error})")
    return True
