"""Error messages of failing processes: user errors in one line, the first error first, late ranks by name."""

import logging
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from mask2former.engine.errors import ProcessError, TrainingError
from mask2former.engine.hooks.preemption import sigterm_received
from mask2former.utils.comm import others_status, rank, report_failure

USER_ERRORS = (TrainingError, ValueError, OSError, ModuleNotFoundError)
FIRST_ERROR_SECONDS = 3.0  # for the launcher to notice the rank that failed first


@contextmanager
def tracebacks_shortened() -> Iterator[None]:
    """Let torch's launcher log user errors in one line and no traceback of killed processes."""
    launcher_log = logging.getLogger("torch.distributed.elastic.multiprocessing.api")
    launcher_log.addFilter(_shorten_traceback)
    try:
        yield
    finally:
        launcher_log.removeFilter(_shorten_traceback)


def _shorten_traceback(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, ProcessRaisedException):
        last = str(error).splitlines()[-1]
        module, _, name = last.partition(":")[0].rpartition(".")
        kind = getattr(sys.modules.get(module or "builtins"), name, None)
        if isinstance(kind, type) and issubclass(kind, USER_ERRORS):
            record.msg, record.args, record.exc_info = last, (), None
    elif isinstance(error, ProcessExitedException):
        record.exc_info = None
    return True


@contextmanager
def lost_ranks_explained(timeout: float) -> Iterator[None]:
    """Within the block a failure is reported to all ranks, and a collective's failure names the late ranks.

    Raises:
        ProcessError: a collective failed, since other ranks were late or died.
    """
    try:
        yield
    except Exception as error:
        report_failure()
        if not is_connection_error(error):
            raise
        if "Timed out" in str(error):
            message = f"process {rank()} waited {timeout:g} s (--timeout) for others. {others_status()}"
        else:  # another rank died, and its error is the one to show
            message = f"process {rank()} lost another process, whose own error tells why. ({error})"
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if not sigterm_received():  # else the launcher knows already
                time.sleep(FIRST_ERROR_SECONDS)
        raise ProcessError(message) from error


def is_connection_error(error: Exception) -> bool:
    """Return True if ranks did not meet in a collective; gloo has no error class for it."""
    message = str(error)
    of_gloo = isinstance(error, RuntimeError) and ("gloo/transport" in message or "pair closure" in message)
    return of_gloo or isinstance(error, dist.DistError)


def first_failure(error: ChildFailedError) -> str:
    """Return the message of the process that failed first, in one line."""
    number, failure = error.get_first_failure()
    message: Any = failure.message
    if isinstance(message, dict):  # written by the failing process; text if it was killed
        message = message.get("message", "")
    return f"process {number} failed: {message or f'exit code {failure.exitcode}'}"
