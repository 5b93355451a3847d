"""What a user reads when a process fails: one line of a mistake, the first error, and who was missing."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from mask2former.engine.errors import TrainingError
from mask2former.utils.comm import others_notes, rank

MISTAKES = (TrainingError, ValueError, OSError, ModuleNotFoundError)  # most often a user's


class _OneLine(logging.Filter):
    """Of a user's mistake in a process, the line that says it; of a process that was killed, no traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, ProcessRaisedException):
            last = str(error).splitlines()[-1]
            if _is_mistake(last.partition(":")[0]):
                record.msg, record.args, record.exc_info = last, (), None
        elif isinstance(error, ProcessExitedException):
            record.exc_info = None
        return True


def _is_mistake(name: str) -> bool:
    """Whether an error of this name, with its module's, needs no traceback."""
    module, _, name = name.rpartition(".")
    kind = getattr(sys.modules.get(module or "builtins"), name, None)
    return isinstance(kind, type) and issubclass(kind, MISTAKES)


@contextmanager
def mistakes_in_one_line() -> Iterator[None]:
    """Within the block torch's launcher shows fewer tracebacks of processes."""
    torchs = logging.getLogger("torch.distributed.elastic.multiprocessing.api")
    one_line = _OneLine()
    torchs.addFilter(one_line)
    try:
        yield
    finally:
        torchs.removeFilter(one_line)


def others_are_missing(error: Exception) -> bool:
    """Whether a collective failed because not all came to it; gloo has no error class of its own."""
    message = str(error)
    of_gloo = isinstance(error, RuntimeError) and ("gloo/transport" in message or "pair closure" in message)
    return of_gloo or isinstance(error, dist.DistError)


def is_timeout(error: Exception) -> bool:
    """Whether others did not come in time, rather than being lost."""
    return "Timed out" in str(error)


def explain_missing(error: Exception, timeout: float) -> str:
    """What a process that waited in vain can say."""
    if is_timeout(error):
        return f"process {rank()} waited {timeout:g} s (--timeout) for others. {others_notes()}"
    return f"process {rank()} lost another process, whose own error tells why. ({error})"


def first_failure(error: ChildFailedError) -> str:
    """What the process that failed first had to say, in one line."""
    number, failure = error.get_first_failure()
    message: Any = failure.message
    if isinstance(message, dict):  # what the failing process left; text where it was killed
        message = message.get("message", "")
    return f"process {number} failed: {message or f'exit code {failure.exitcode}'}"
