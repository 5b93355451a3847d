"""Starting processes: one here, several by torch's elastic launcher, or this is one of torchrun's or srun's.

Each process runs the same function. A process group connects them: NCCL on GPUs, gloo on CPUs.
"""

import argparse
import logging
import math
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable
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
from mask2former.engine.errors import PREEMPTED, ProcessError
from mask2former.engine.launch.failures import is_connection_error, lost_ranks_explained, tracebacks_shortened
from mask2former.engine.launch.flags import TIMEOUT
from mask2former.engine.launch.rendezvous import interface_towards, wait_for_machines
from mask2former.engine.launch.slurm import slurm_task
from mask2former.utils.comm import barrier, connect, disconnect

logger = logging.getLogger(__name__)

Work = Callable[[argparse.Namespace, str], int]  # (flags, "cuda" or "cpu") -> exit code

# Seconds from SIGTERM until the launcher kills its processes: long, as the scheduler has a limit of its own.
# A variable, since torch 2.6 has no option for it and always waits 30.
SHUTDOWN, SHUTDOWN_SECONDS = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", 600
INTERRUPT_SECONDS = 30  # from Ctrl-C until a process that hangs in a collective is killed


@dataclass(frozen=True)
class Processes:
    """`per_machine` processes on each of `machines`, all on "cuda" or all on "cpu"."""

    device: str
    per_machine: int
    machines: int = 1
    machine_rank: int = 0
    dist_url: str = "auto"
    max_restarts: int = 0
    timeout: float = TIMEOUT


def started_by_torchrun() -> bool:
    """Return True if torchrun, or srun by `slurm_task`'s variables, has started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def chosen_device(args: argparse.Namespace, gpus: int) -> str:
    """Return the device, "cuda" or "cpu", that the flags select on a machine with `gpus` GPUs.

    Raises:
        ValueError: more GPUs than there are, or flags that contradict each other.
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
    """Return the processes that the flags ask for on a machine with `gpus` GPUs.

    Raises:
        ValueError: as `chosen_device`, or several machines without --dist-url.
    """
    device = chosen_device(args, gpus)
    if args.num_machines > 1 and not args.dist_url.startswith("tcp://"):
        raise ValueError(
            f"--dist-url is '{args.dist_url}'; several machines need tcp://HOST:PORT of the first"
        )
    if device == "cpu" and args.num_processes is None and args.num_gpus is None:
        # Before there is a log
        print("no GPU is usable here: running on the CPU", file=sys.stderr)  # noqa: T201
    machines = (args.num_machines, args.machine_rank, args.dist_url, args.max_restarts, args.timeout)
    return Processes(device, args.num_processes or args.num_gpus or 1, *machines)


def device_of_started(args: argparse.Namespace, gpus: int, starter: str) -> str:
    """Return the device of this process, which `starter` ("torchrun" or "srun") has started.

    Raises:
        ValueError: the flags contradict what was started, or as `chosen_device`.
    """
    if args.max_restarts:
        own = "torchrun has its own" if starter == "torchrun" else "of srun's tasks those with --num-gpus can"
        raise ValueError(f"--max-restarts is for processes that this command starts; {own}")
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    for flag, number in (("--num-gpus", args.num_gpus), ("--num-processes", args.num_processes)):
        if number and number != here:
            raise ValueError(f"{flag} {number}, but {starter} has started {here} processes on this machine")
    device = chosen_device(args, gpus)
    if device == "cuda" and here > gpus > 1:  # a single visible GPU may be this task's own
        raise ValueError(f"{starter} has started {here} processes on this machine, which has {gpus} GPUs")
    return device


def launch(work: Work, args: argparse.Namespace) -> int:
    """Run `work(args, device)` in every process that the flags in `args` ask for; return rank 0's exit code.

    A task of srun is one process; with --num-gpus or --num-processes it is a machine with that many.

    Raises:
        ValueError: as `plan_processes` and `device_of_started`.
        ChildFailedError: a process failed; names the first that did.
    """
    task = None if started_by_torchrun() else slurm_task(os.environ, args.dist_url)
    if task and (args.num_gpus or args.num_processes):
        args.num_machines, args.machine_rank, args.dist_url = task.total, task.number, task.url
    elif task:
        os.environ.update(task.variables())
    gpus = torch.cuda.device_count()
    if started_by_torchrun():
        return _join_and_work(work, args, device_of_started(args, gpus, "srun" if task else "torchrun"))
    plan = plan_processes(args, gpus)
    if plan.per_machine * plan.machines == 1 and not plan.max_restarts:
        return work(args, plan.device)
    return _launch_processes(plan, work, args)


def _launch_processes(plan: Processes, work: Work, args: argparse.Namespace) -> int:
    os.environ.setdefault(SHUTDOWN, str(SHUTDOWN_SECONDS))
    preempted = get_context("spawn").Event()
    if plan.machines > 1:
        # The store keeps the port.
        _store = wait_for_machines(plan.dist_url, plan.machine_rank, plan.machines, args.timeout)
    before = tempfile.tempdir
    try:  # torch leaves temporary files behind: they go to a folder that is removed
        folder = tempfile.TemporaryDirectory(prefix="mask2former_", ignore_cleanup_errors=True)
        with folder as tempfile.tempdir, tracebacks_shortened():
            launched = elastic_launch(_launch_config(plan), _work_launched)
            codes: dict[int, Any] = launched(work, args, plan.device, preempted)
    except (SignalException, ChildFailedError):  # SIGTERM, to the launcher or to one process
        if not preempted.is_set():
            raise
        return PREEMPTED
    finally:
        tempfile.tempdir = before
    return codes[min(codes)]


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


def _work_launched(work: Work, args: argparse.Namespace, device: str, preempted: Event) -> int:
    """Run `work` in a process of torch's launcher, which ignores return values after a SIGTERM."""
    if preempted.is_set():  # the launcher took the preempted process for a failed one and restarted it
        return PREEMPTED
    try:
        code = _join_and_work(work, args, device)
    except SystemExit as stop:  # output is lost, which has been said; the launcher would see a crash
        code = int(stop.code or 0)
    if code == PREEMPTED:
        preempted.set()
        sys.exit(PREEMPTED)
    return code


def _join_and_work(work: Work, args: argparse.Namespace, device: str) -> int:
    """Run `work` in a launched process, connected to the other ranks."""
    signal.signal(signal.SIGINT, _interrupt_once)
    _take_share_of_machine(device)
    try:
        connect("nccl" if device == "cuda" else "gloo", timedelta(seconds=args.timeout))
    except (RuntimeError, TimeoutError) as error:
        if not (isinstance(error, TimeoutError) or is_connection_error(error)):
            raise
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ProcessError(
            f"process {os.environ['RANK']} did not meet the others at {place} within {args.timeout:g} s "
            f"(--timeout): {str(error).splitlines()[0]}"
        ) from error
    try:
        with lost_ranks_explained(args.timeout):
            code = work(args, device)
            if code == PREEMPTED:
                barrier()  # a launcher takes the first rank to leave for a failed one, and ends the others
            return code
    finally:
        disconnect()


def _take_share_of_machine(device: str) -> None:
    """Select this process's GPU or network interface."""
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    several_machines = int(os.environ["WORLD_SIZE"]) > local_processes
    if device == "cuda":  # modulo: SLURM may show each task its own GPU only
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    elif several_machines and (interface := interface_towards(os.environ["MASTER_ADDR"])):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def _interrupt_once(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt once: Ctrl-C comes from the terminal and again from the launcher."""
    signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.alarm(INTERRUPT_SECONDS)
    raise KeyboardInterrupt
