"""Processes and devices: one process here, several on torch's elastic launcher, or one of torchrun's.

Each process runs the same function; with several, a process group connects them (NCCL on GPUs, gloo on CPUs).
"""

import argparse
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

logger = logging.getLogger(__name__)

TIMEOUT = timedelta(hours=1)  # the others wait while the first process computes metrics


@dataclass(frozen=True)
class Processes:
    """What runs where: `per_machine` processes on each of `machines`, all on "cuda" or all on "cpu"."""

    device: str
    per_machine: int
    machines: int = 1
    machine_rank: int = 0
    dist_url: str = "auto"


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


def started_by_torchrun() -> bool:
    """Whether somebody else has launched the processes already, and this is one of them."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def plan_processes(args: argparse.Namespace, gpus: int) -> Processes:
    """What the flags ask for on a machine with `gpus` GPUs.

    Raises:
        ValueError: more than there is, or flags that contradict each other.
    """
    if args.num_gpus and args.num_processes:
        raise ValueError("--num-gpus and --num-processes exclude each other: the latter runs on the CPU")
    if (args.num_gpus or 0) > gpus:
        raise ValueError(f"--num-gpus {args.num_gpus}, but this machine has {gpus} usable GPUs")
    if min(args.num_gpus or 0, args.num_processes or 1) < 0 or not 0 <= args.machine_rank < args.num_machines:
        raise ValueError("--num-* must be positive, --machine-rank from 0 to less than --num-machines")
    if args.num_machines > 1 and not args.dist_url.startswith("tcp://"):
        raise ValueError(
            f"--dist-url is '{args.dist_url}'; several machines need tcp://HOST:PORT of the first"
        )
    machines = (args.num_machines, args.machine_rank, args.dist_url)
    if args.num_processes or args.num_gpus == 0:
        return Processes("cpu", args.num_processes or 1, *machines)
    if not gpus:
        print("no GPU is usable here: running on the CPU")  # noqa: T201  (before there is a log)
        return Processes("cpu", 1, *machines)
    return Processes("cuda", args.num_gpus or 1, *machines)


def launch(work: Callable[..., int], args: argparse.Namespace) -> int:
    """Run `work(args, device)` in every process that the flags in `args` ask for; the first one's exit code.

    Raises:
        ValueError: as `plan_processes`.
        ChildFailedError: a process failed; it names the first that did.
    """
    if started_by_torchrun():
        device = "cuda" if torch.cuda.is_available() and not args.num_processes else "cpu"
        return _join_and_work(work, args, device)
    plan = plan_processes(args, torch.cuda.device_count())
    if plan.per_machine * plan.machines == 1:
        return work(args, plan.device)
    codes: dict[int, Any] = elastic_launch(_launch_config(plan), _join_and_work)(work, args, plan.device)
    return codes[min(codes)]


def _launch_config(plan: Processes) -> LaunchConfig:
    """One try, no restarts: `--resume` continues a run, and the first error is what a user must see."""
    alone = plan.machines == 1
    static = {"rank": plan.machine_rank, "timeout": int(TIMEOUT.total_seconds())}
    return LaunchConfig(
        min_nodes=plan.machines,
        max_nodes=plan.machines,
        nproc_per_node=plan.per_machine,
        run_id="mask2former",
        max_restarts=0,
        start_method="spawn",
        rdzv_backend="c10d" if alone else "static",
        rdzv_endpoint="localhost:0" if alone else plan.dist_url.removeprefix("tcp://"),
        rdzv_configs={} if alone else static,
        local_addr="localhost" if alone else None,
    )


def _join_and_work(work: Callable[..., int], args: argparse.Namespace, device: str) -> int:
    """In a launched process: take a share of the machine, join the others, work."""
    signal.signal(signal.SIGINT, _interrupt_once)
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, usable_cores() // local_processes))
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        return work(args, device)
    finally:
        dist.destroy_process_group()


def _interrupt_once(number: int, frame: FrameType | None) -> None:
    """Ctrl-C comes twice, from the terminal and from the launcher; the second must not break the clean-up."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def usable_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def first_failure(error: ChildFailedError) -> str:
    """What the process that failed first had to say, in one line."""
    number, failure = error.get_first_failure()
    message: Any = failure.message
    if isinstance(message, dict):  # what the failing process left; text where it was killed
        message = message.get("message", "")
    return f"process {number} failed: {message or f'exit code {failure.exitcode}'}"
