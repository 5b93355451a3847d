"""Logging of a run: short lines on stderr, results on stdout, and both with tracebacks in log.txt."""

import logging
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path

import numpy
import torch

from mask2former.utils.messages import Block, MessageFormatter
from mask2former.version import __version__, commit

logger = logging.getLogger(__name__)

FORMAT = "[%(asctime)s] %(levelname)s %(message)s"
RESULT = {"is_result": True}  # `extra` of records that are results of the command, and not about its progress


class LogFile(logging.FileHandler):
    """File of log lines that may get lost, as on a full disk: a warning says so once, and the run goes on."""

    _is_broken = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Warn of the first line that cannot be written."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._is_broken:
            self._is_broken = True
            logger.warning("%s is incomplete: it cannot be written (%s)", self.baseFilename, error)

    def close(self) -> None:
        """Close the file, perhaps without its last lines."""
        with suppress(OSError):
            super().close()


def setup_logger(output_dir: str | Path | None = None, rank: int = 0) -> None:
    """Log to stderr, results to stdout, and both to `log.txt` in `output_dir`.

    Ranks other than 0 print warnings only.
    """
    root = logging.getLogger("mask2former")
    root.setLevel(logging.DEBUG)
    root.propagate = False
    for handler in list(root.handlers):
        handler.close()
        root.removeHandler(handler)
    console = logging.StreamHandler(sys.stderr)
    console.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    console.setFormatter(MessageFormatter(FORMAT if rank == 0 else f"(process {rank}) {FORMAT}", "%H:%M:%S"))
    console.addFilter(lambda record: not _is_result(record))
    results = logging.StreamHandler(sys.stdout)
    results.setFormatter(MessageFormatter("%(message)s"))
    results.addFilter(_is_result)
    for handler in (console, results):
        root.addHandler(handler)
    if output_dir and rank == 0:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        file = LogFile(Path(output_dir) / "log.txt", encoding="utf-8")
        file.setFormatter(MessageFormatter(FORMAT))
        root.addHandler(file)


def _is_result(record: logging.LogRecord) -> bool:
    return getattr(record, "is_result", False)


def describe_environment(threads: str) -> Block:
    """Return versions, devices and the commit, for the head of a log.

    `threads` tells how many threads compute; see `share_processor`.
    """
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts = {
        "mask2former": f"{__version__} (commit {commit()})",
        "python": f"{platform.python_version()} on {platform.platform()}",
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda})",
        "numpy": numpy.__version__,
        "GPUs": ", ".join(gpus) or "none",
        "CPU": f"{os.cpu_count()} cores, {threads}",
    }
    return Block("\n".join(f"  {name}: {fact}" for name, fact in facts.items()))
