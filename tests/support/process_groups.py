"""Jobs in process groups of several sizes, after a single start of processes, which is slow."""

import multiprocessing
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# Imported once, before the server forks; every optimizer imports torch._dynamo, late and slowly
PRELOADED = ["mask2former.engine.train", "torch._dynamo"]


class Job(NamedTuple):
    """`work(*args)`, a module-level function, to run in each of `processes` connected processes."""

    processes: int
    work: Callable[..., None]
    args: tuple = ()


def run_in_worlds(jobs, folder):
    """Run the jobs one after the other; `folder` is for the rendezvous."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    count = max(job.processes for job in jobs)
    mp.start_processes(_process, (jobs, str(folder)), nprocs=count, start_method="forkserver")


def _process(number, jobs, folder):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for place, job in enumerate(jobs):
        if number >= job.processes:
            continue
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/store{place}", rank=number, world_size=job.processes
        )
        job.work(*job.args)
        dist.destroy_process_group()
