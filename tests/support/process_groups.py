"""Jobs in groups of processes of several sizes after one start of processes, which is what takes time."""

import multiprocessing
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# Imported once, before the server forks; the second is by every optimizer, late and slowly
PRELOADED = ["mask2former.engine.train", "torch._dynamo"]


class Job(NamedTuple):
    """`work(*args)`, a function of a module, in each of `processes` processes that know each other."""

    processes: int
    work: Callable[..., None]
    args: tuple = ()


def run_in_worlds(jobs, folder):
    """Do the jobs one after the other; `folder` is where processes find each other."""
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
