"""Logging of a run: short lines on stderr, results on stdout, and both with tracebacks in log.txt."""

import logging
import os
import platform
import sys
from pathlib import Path

import numpy
import torch

from mask2former.utils.messages import Block, MessageFormatter
from mask2former.version import __version__, commit

FORMAT = "[%(asctime)s] %(levelname)s %(message)s"
RESULT = {"is_result": True}  # `extra` of records that are results of the command, and not about its progress


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
        file = logging.FileHandler(Path(output_dir) / "log.txt", encoding="utf-8")
        file.setFormatter(MessageFormatter(FORMAT))
        root.addHandler(file)


def _is_result(record: logging.LogRecord) -> bool:
    return getattr(record, "is_result", False)


def describe_environment() -> Block:
    """Return versions, devices and the commit, for the head of a log."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts = {
        "mask2former": f"{__version__} (commit {commit()})",
        "python": f"{platform.python_version()} on {platform.platform()}",
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda})",
        "numpy": numpy.__version__,
        "GPUs": ", ".join(gpus) or "none",
        "CPU": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads used",
    }
    return Block("\n".join(f"  {name}: {fact}" for name, fact in facts.items()))
