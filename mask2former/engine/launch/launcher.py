"""Processes and devices: one process here, several on torch's elastic launcher, one of torchrun's or srun's.

Each process runs the same function; with several, a process group connects them (NCCL on GPUs, gloo on CPUs).
"""

import argparse
import logging
import math
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from types import FrameType
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from mask2former.engine.checkpoint.run_identity import NAMELESS
from mask2former.engine.errors import ProcessError
from mask2former.engine.hooks.preemption import PREEMPTED, was_told_to_stop
from mask2former.engine.launch.failures import (
    explain_missing,
    is_timeout,
    mistakes_in_one_line,
    others_are_missing,
)
from mask2former.engine.launch.rendezvous import choose_interface, meet
from mask2former.engine.launch.slurm import slurm_task
from mask2former.utils.comm import barrier, connect, disconnect, note_failure

logger = logging.getLogger(__name__)

TIMEOUT = 3600  # seconds; the others wait while the first process computes metrics
# Seconds for processes to end after SIGTERM: to kill them sooner is the scheduler's business. A variable, as
# torch 2.6 does not know the option: it gives 30.
SHUTDOWN, SHUTDOWN_SECONDS = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", 600
INTERRUPT_SECONDS = 30  # for a process to end after Ctrl-C, which one that waits for others does not see
PATIENCE = 3.0  # seconds that a process which lost another leaves to the launcher to find that one's error


@dataclass(frozen=True)
class Processes:
    """What runs where: `per_machine` processes on each of `machines`, all on "cuda" or all on "cpu"."""

    device: str
    per_machine: int
    machines: int = 1
    machine_rank: int = 0
    dist_url: str = "auto"
    max_restarts: int = 0
    timeout: float = TIMEOUT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that say how many processes run where: Detectron2's, and one for processes on the CPU."""
    flag = parser.add_argument
    flag("--num-gpus", type=int, metavar="N", help="GPUs on this machine (default: 1 if there is one)")
    flag("--num-processes", type=int, metavar="N", help="processes on the CPU, instead of GPUs")
    flag("--num-machines", type=int, default=1, metavar="N", help="machines that work together")
    flag("--machine-rank", type=int, default=0, metavar="R", help="number of this machine, from 0")
    flag(
        "--dist-url",
        default="auto",
        metavar="URL",
        help="with several machines: tcp://HOST:PORT of the first",
    )
    flag(
        "--max-restarts",
        type=int,
        default=0,
        metavar="N",
        help="when a process fails, start all again from the last checkpoint, up to N times",
    )
    flag(
        "--timeout",
        type=float,
        default=TIMEOUT,
        metavar="SECONDS",
        help=f"how long processes wait for each other (default: {TIMEOUT}; evaluation is such a wait)",
    )


def started_by_torchrun() -> bool:
    """Whether somebody else has launched the processes already, and this is one of them."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def chosen_device(args: argparse.Namespace, gpus: int) -> str:
    """What the flags ask for on a machine with `gpus` GPUs, "cuda" or "cpu", whoever starts the processes.

    Raises:
        ValueError: more than there is, or flags that contradict each other.
    """
    if args.num_gpus and args.num_processes:
        raise ValueError("--num-gpus and --num-processes exclude each other: the latter runs on the CPU")
    if (args.num_gpus or 0) > gpus:
        raise ValueError(f"--num-gpus {args.num_gpus}, but this machine has {gpus} usable GPUs")
    if min(args.num_gpus or 0, args.num_processes or 1) < 0 or not 0 <= args.machine_rank < args.num_machines:
        raise ValueError("--num-* must be positive, --machine-rank from 0 to less than --num-machines")
    if args.max_restarts < 0 or args.timeout <= 0:
        raise ValueError("--max-restarts must not be negative, --timeout must be positive")
    return "cpu" if args.num_processes or args.num_gpus == 0 or not gpus else "cuda"


def plan_processes(args: argparse.Namespace, gpus: int) -> Processes:
    """What the flags ask for on a machine with `gpus` GPUs.

    Raises:
        ValueError: as `chosen_device`, or several machines have no place to meet.
    """
    device = chosen_device(args, gpus)
    if args.num_machines > 1 and not args.dist_url.startswith("tcp://"):
        raise ValueError(
            f"--dist-url is '{args.dist_url}'; several machines need tcp://HOST:PORT of the first"
        )
    if device == "cpu" and args.num_processes is None and args.num_gpus is None:
        print("no GPU is usable here: running on the CPU")  # noqa: T201  (before there is a log)
    machines = (args.num_machines, args.machine_rank, args.dist_url, args.max_restarts, args.timeout)
    return Processes(device, args.num_processes or args.num_gpus or 1, *machines)


def device_of_started(args: argparse.Namespace, gpus: int, starter: str) -> str:
    """The device of this process, which torchrun or srun, the `starter`, has started.

    Raises:
        ValueError: the flags ask for other processes than there are, or as `chosen_device`.
    """
    if args.max_restarts:
        own = "torchrun has its own" if starter == "torchrun" else "of srun's tasks those with --num-gpus can"
        raise ValueError(f"--max-restarts is for processes that this command starts; {own}")
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    for flag, number in (("--num-gpus", args.num_gpus), ("--num-processes", args.num_processes)):
        if number and number != here:
            raise ValueError(f"{flag} {number}, but {starter} has started {here} processes on this machine")
    device = chosen_device(args, gpus)
    if device == "cuda" and here > gpus > 1:  # one alone may be that of this task
        raise ValueError(f"{starter} has started {here} processes on this machine, which has {gpus} GPUs")
    return device


def launch(work: Callable[..., int], args: argparse.Namespace) -> int:
    """Run `work(args, device)` in every process that the flags in `args` ask for; the first one's exit code.

    A task of srun is one process, or with --num-gpus or --num-processes a machine of so many.

    Raises:
        ValueError: as `plan_processes`.
        ChildFailedError: a process failed; it names the first that did.
    """
    task = None if started_by_torchrun() else slurm_task(os.environ, args.dist_url)
    if task and (args.num_gpus or args.num_processes):
        args.num_machines, args.machine_rank, args.dist_url = task.total, task.number, task.url
    elif task:
        os.environ.update(task.variables())
    if started_by_torchrun():
        starter = "srun" if task else "torchrun"
        return _join_and_work(work, args, device_of_started(args, torch.cuda.device_count(), starter))
    plan = plan_processes(args, torch.cuda.device_count())
    if plan.per_machine * plan.machines == 1 and not plan.max_restarts:
        return work(args, plan.device)
    return _launch_processes(plan, work, args)


def _launch_processes(plan: Processes, work: Callable[..., int], args: argparse.Namespace) -> int:
    os.environ.setdefault(SHUTDOWN, str(SHUTDOWN_SECONDS))
    preempted = get_context("spawn").Event()
    if plan.machines > 1:
        _port = meet(plan.dist_url, plan.machine_rank, plan.machines, args.timeout)  # stays open
    try:
        with _temporary_files_removed(), mistakes_in_one_line():
            launched = elastic_launch(_launch_config(plan), _work_launched)
            codes: dict[int, Any] = launched(work, args, plan.device, preempted)
    except (SignalException, ChildFailedError):  # SIGTERM, of the launcher or of a process alone
        if not preempted.is_set():
            raise
        return PREEMPTED
    return codes[min(codes)]


@contextmanager
def _temporary_files_removed() -> Iterator[None]:
    """Within the block temporary files go to a folder that is removed: torch leaves some behind."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="mask2former_", ignore_cleanup_errors=True) as folder:
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = before


def _launch_config(plan: Processes) -> LaunchConfig:
    alone = plan.machines == 1
    static = {"rank": plan.machine_rank, "timeout": math.ceil(plan.timeout)}
    return LaunchConfig(
        min_nodes=plan.machines,
        max_nodes=plan.machines,
        nproc_per_node=plan.per_machine,
        run_id=uuid.uuid4().hex if alone else NAMELESS,
        max_restarts=plan.max_restarts,
        start_method="spawn",
        rdzv_backend="c10d" if alone else "static",
        rdzv_endpoint="localhost:0" if alone else plan.dist_url.removeprefix("tcp://"),
        rdzv_configs={} if alone else static,
        local_addr="localhost" if alone else None,
    )


def _work_launched(work: Callable[..., int], args: argparse.Namespace, device: str, preempted: Event) -> int:
    """In a process of our own launcher, which after a SIGTERM no longer waits for what a process returns."""
    if preempted.is_set():  # a process that leaves after SIGTERM looks to torch as one that failed
        return PREEMPTED
    code = _join_and_work(work, args, device)
    if code == PREEMPTED:
        preempted.set()
        if was_told_to_stop():
            sys.exit(PREEMPTED)
    return code


def _join_and_work(work: Callable[..., int], args: argparse.Namespace, device: str) -> int:
    """In a launched process: take a share of the machine, join the others, work."""
    signal.signal(signal.SIGINT, _interrupt_once)
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, usable_cores() // local_processes))
    if device == "cuda":  # of those that SLURM gives to a task alone, it sees no other
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    elif int(os.environ["WORLD_SIZE"]) > local_processes:
        choose_interface()
    _connect("nccl" if device == "cuda" else "gloo", args.timeout)
    try:
        if (code := work(args, device)) == PREEMPTED:
            barrier()  # who leaves earlier is taken for one that failed, and ends the others
        return code
    except Exception as error:
        note_failure()
        if not others_are_missing(error):
            raise
        if not is_timeout(error):
            _let_the_first_error_be_found()
        raise ProcessError(explain_missing(error, args.timeout)) from error
    finally:
        disconnect()


def _connect(backend: str, timeout: float) -> None:
    try:
        connect(backend, timedelta(seconds=timeout))
    except (RuntimeError, TimeoutError) as error:
        if not (isinstance(error, TimeoutError) or others_are_missing(error)):
            raise
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ProcessError(
            f"process {os.environ['RANK']} did not meet the others at {place} within {timeout:g} s "
            f"(--timeout): {str(error).splitlines()[0]}"
        ) from error


def _let_the_first_error_be_found() -> None:
    """This process lost another, whose own error is the one to show: leave the launcher time to find it."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if not was_told_to_stop():  # else the launcher knows already
        time.sleep(PATIENCE)


def _interrupt_once(number: int, frame: FrameType | None) -> None:
    """Ctrl-C comes twice, from the terminal and from the launcher; the second must not break the clean-up."""
    signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.alarm(INTERRUPT_SECONDS)  # ends the process
    raise KeyboardInterrupt


def usable_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
