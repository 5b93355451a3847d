"""Shared helpers of the benchmarks: timing alternatives in turn, peak memory, and tables.

Every section of `benchmarks/cpu.py` is a module of this folder with

    def report() -> str

which measures both sides and returns its Markdown: a sentence on what is compared, then one table. Run alone
(`python benchmarks/postprocessing.py`), such a module prints the machine and its report: see `run_alone`.

Times are medians of alternating runs: on a machine whose speed drifts, the sides drift together.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from mask2former.utils.messages import plural

MB = 1e6


def alternate(
    sides: Mapping[str, Callable[[], object]],
    runs: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Return median seconds of each side, run in turns A B A B; the first `warmup` rounds do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(warmup + runs):
        for name, run in sides.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return {name: statistics.median(times[warmup:]) for name, times in seconds.items()}


def child_peak_mb(argv: Sequence[str]) -> float:
    """Return peak resident megabytes (10**6 bytes) of a fresh process `argv`; its output passes through.

    Raises:
        RuntimeError: the process failed.
    """
    sys.stdout.flush()
    process = os.posix_spawnp(argv[0], list(argv), os.environ)
    _, status, usage = os.wait4(process, 0)
    if status:
        raise RuntimeError(f"{' '.join(argv)} ended with {os.waitstatus_to_exitcode(status)}")
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss: bytes there, KiB elsewhere
    return usage.ru_maxrss * unit / MB


def machine() -> str:
    """Describe processor, cores, threads and versions in one line."""
    return (
        f"{_processor()}, {os.cpu_count()} cores, {plural(torch.get_num_threads(), 'thread')}, "
        f"torch {torch.__version__}, Python {platform.python_version()}"
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            fields = dict(line.split(":", 1) for line in lines if ":" in line)
    except OSError:
        fields = {}
    named = {key.strip(): value.strip() for key, value in fields.items()}
    return named.get("model name") or platform.processor() or platform.machine()


def table(rows: Sequence[Sequence[str]]) -> str:
    """Format rows as GitHub Markdown; the first row is the head."""
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def ratio(slower: float, faster: float) -> str:
    """Format how many times as much `slower` is: 2.31x."""
    return f"{slower / faster:.2f}x"


def run_alone(report: Callable[[], str]) -> None:
    """Print the machine and the report of one section."""
    print(machine(), end="\n\n")
    print(report())
