"""The processor cores that a process may use, and what limits them.

Torch knows the processors of the machine and of the affinity mask. It does not know the CPU quota of a
container, nor the other processes of the job. Nothing here imports torch: `mask2former doctor` works without.
"""

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path("/")
THREADS_CHOSEN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # environment variables that torch obeys


class Cores(NamedTuple):
    """A number of cores, which a quota can make a fraction, and what limits it."""

    number: float
    reason: str


def affinity() -> int:
    """Return the number of processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_cores() -> int:
    """Return the number of cores of this machine that the job may use, rounded up."""
    return math.ceil(job_cores(affinity(), os.environ).number)


def job_cores(processors: int, environ: Mapping[str, str], root: Path = ROOT) -> Cores:
    """Return the cores of this machine that the job may use: `processors`, or fewer by SLURM or a quota.

    Args:
        processors: those that the job's processes may run on.
        environ: the environment variables.
        root: the folder with `proc` and `sys`.
    """
    limits = [Cores(processors, "all processors"), *_slurm_cores(environ), *_quotas(root)]
    return min(limits, key=lambda cores: cores.number)


def thread_share(threads: int, environ: Mapping[str, str], root: Path = ROOT) -> Cores:
    """Return how many threads this process should compute with, and why.

    Args:
        threads: what torch would take by itself: all physical cores that this process may run on.
        environ: the environment variables; what the user has set there stays.
        root: the folder with `proc` and `sys`.
    """
    if chosen := [name for name in THREADS_CHOSEN if name in environ]:
        return Cores(threads, f"{chosen[0]} is set")
    processes = int(environ.get("LOCAL_WORLD_SIZE", 1))
    # Tasks of srun mostly run on cores of their own, other processes on the same ones.
    is_task = environ.get("SLURM_STEP_NUM_TASKS") == environ.get("WORLD_SIZE", "1")
    job = job_cores(threads * processes if is_task else threads, environ, root)
    share = max(1, math.ceil(job.number) // processes)
    if share >= threads:
        return Cores(threads, "torch's own choice")
    return Cores(share, job.reason if processes == 1 else f"{job.reason}, shared by {processes} processes")


def _slurm_cores(environ: Mapping[str, str]) -> Iterator[Cores]:
    name = "SLURM_CPUS_ON_NODE"
    number = environ.get(name, "")
    if number.isdecimal() and int(number):
        yield Cores(int(number), f"{name}={number}")


def _quotas(root: Path) -> Iterator[Cores]:
    """Yield the CPU quotas of this process's cgroups, of version 1 or 2, and of the groups above them.

    In a container, the path can be that of the host, whereas the mounted folder is the container's own.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = top if ".." in path else top / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(top):
                yield from _quota(folder)


def _quota(folder: Path) -> Iterator[Cores]:
    """Yield the quota of one cgroup, if it has one: microseconds of processor time in a period."""
    first, second = folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us"
    for file, text in (
        (folder / "cpu.max", _read(folder / "cpu.max")),
        (first, _read(first) + _read(second)),
    ):
        match text.split():
            case [quota, period] if quota.isdecimal() and int(period):
                cores = int(quota) / int(period)
                yield Cores(cores, f"a quota of {cores:g} CPUs in {file}")


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""
