"""Logging of a run: short lines on the console, and the same with tracebacks in log.txt."""

import logging
import os
import platform
import sys
from pathlib import Path

import numpy
import torch

from mask2former.version import __version__, commit

FORMAT = "[%(asctime)s] %(levelname)s %(message)s"


def setup_logger(output_dir: str | Path | None = None, rank: int = 0) -> None:
    """Log to the console and to `log.txt` in `output_dir`; ranks other than 0 print warnings only."""
    root = logging.getLogger("mask2former")
    root.setLevel(logging.DEBUG)
    root.propagate = False
    for handler in list(root.handlers):
        handler.close()
        root.removeHandler(handler)
    console = logging.StreamHandler(sys.stdout)
    console.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    console.setFormatter(logging.Formatter(FORMAT if rank == 0 else f"(process {rank}) {FORMAT}", "%H:%M:%S"))
    root.addHandler(console)
    if output_dir and rank == 0:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(Path(output_dir) / "log.txt")
        file.setFormatter(logging.Formatter(FORMAT))
        root.addHandler(file)


def describe_environment() -> str:
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
    return "\n".join(f"  {name}: {fact}" for name, fact in facts.items())
