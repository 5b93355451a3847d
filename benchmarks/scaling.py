"""Compare one process with two on this machine at the same total batch: throughput, and where time goes.

    python benchmarks/scaling.py [--rounds N] [--steps N] [KEY VALUE ...]

Every side trains R50 on synthetic images, in fresh processes started as by the training command. Sides take
turns; reported are medians over all steps. One process with one thread is the baseline for two processes of
one thread each; one process with all threads uses the same cores without a second process.

"Data" is the time to load a step's images in the training process. "Communication" is how much longer a step
takes for exchanging gradients: every other step leaves the exchange out. "Compute" is the rest, and includes
waiting for the other process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from measure import MB, machine, ratio, table
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from mask2former.config import load_config
from mask2former.data.datasets.shapes import write_shapes
from mask2former.data.loader import build_train_loader
from mask2former.engine.build import build_model
from mask2former.engine.launch.flags import add_arguments as add_launch_arguments
from mask2former.engine.launch.launcher import launch
from mask2former.engine.setup.cores import usable_cores
from mask2former.engine.train import build_trainer
from mask2former.engine.trainer import Hook, Trainer
from mask2former.utils.comm import is_main_process

CONFIG = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
OPTIONS: dict[str, object] = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "DATASETS.TRAIN": ("shapes_panoptic_train",),
    "DATALOADER.NUM_WORKERS": 0,
    "INPUT.IMAGE_SIZE": 256,
    "SOLVER.AMP.ENABLED": False,
    "SOLVER.IMS_PER_BATCH": 2,
    "SEED": 1,
}
IMAGES = {"train": 64, "val": 1}
TRIES = 5  # of the exchange alone
ROUNDS, STEPS = 2, 2  # measured steps of a side per round, besides the first and those without exchange


class Side(NamedTuple):
    """Number of processes, and of threads in each."""

    processes: int
    threads: int

    def __str__(self) -> str:
        return f"{self.processes} x {self.threads}"


class Exchange:
    """DDP's gradient exchange, which can be left out, with a count of the last step's bytes."""

    def __init__(self) -> None:
        self.left_out = False
        self.bytes = 0

    def reduce(self, group: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        """Exchange a bucket of gradients, as DDP's communication hook."""
        if self.left_out:
            done: torch.futures.Future[Tensor] = torch.futures.Future()
            done.set_result(bucket.buffer())
            return done
        self.bytes += bucket.buffer().nbytes
        return allreduce_hook(group, bucket)


def watch_exchange(model: nn.Module) -> Exchange | None:
    """Put an `Exchange` into `model`; return None if it is not DDP."""
    if not isinstance(model, DistributedDataParallel):
        return None
    exchange = Exchange()
    model.register_comm_hook(None, exchange.reduce)
    return exchange


class Recorder(Hook):
    """Recorder of each step's seconds, which leaves out the exchange of every other step."""

    def __init__(self, exchange: Exchange | None) -> None:
        self.exchange = exchange
        self.steps: list[dict[str, Any]] = []

    def after_step(self, trainer: Trainer) -> None:
        """Add a row: seconds for data and for the rest, and the bytes exchanged."""
        assert trainer.last is not None
        exchange = self.exchange
        row = {"data": trainer.last.data_seconds, "rest": trainer.last.compute_seconds}
        row["left_out"] = exchange is not None and exchange.left_out
        if exchange is not None:
            row["bytes"] = exchange.bytes
            exchange.left_out, exchange.bytes = not exchange.left_out, 0
        self.steps.append(row)


def work(args: argparse.Namespace, device: str) -> int:
    """Train a few steps in each process of a side; rank 0 writes their rows to a file."""
    cfg = load_config(CONFIG, args.opts)
    torch.manual_seed(cfg.SEED)
    batches = build_train_loader(cfg)
    trainer = build_trainer(cfg, build_model(cfg))
    recorder = Recorder(watch_exchange(trainer.model))
    trainer.train(batches, [recorder])
    kinds = 1 if recorder.exchange is None else 2
    found = {"steps": recorder.steps[kinds:], "alone": _exchange_alone(recorder.steps[0].get("bytes", 0))}
    if is_main_process():
        Path(args.child).write_text(json.dumps(found), encoding="utf-8")
    return 0


def _exchange_alone(size: int) -> float:
    """Return the median seconds of exchanging `size` bytes with nothing else running."""
    if not size:
        return 0.0
    gradients, seconds = torch.zeros(size // 4), []
    for _ in range(1 + TRIES):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(gradients)
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:])


def options(**changes: object) -> list[str]:
    """Return every side's config as `KEY VALUE ...`; in a change's name __ stands for the dot."""
    pairs = OPTIONS | {key.replace("__", "."): value for key, value in changes.items()}
    return [str(item) for pair in pairs.items() for item in pair]


def run_side(side: Side, steps: int, opts: list[str]) -> dict[str, Any]:
    """Return the rows of `steps` steps in fresh processes, besides the first and those without exchange.

    Raises:
        CalledProcessError: a process failed.
    """
    count = (1 + steps) * min(side.processes, 2)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "steps.json"
        flags = ["--child", str(file), "--num-processes", str(side.processes)]
        command = [sys.executable, __file__, *flags, *options(SOLVER__MAX_ITER=count), *opts]
        environment = os.environ | {"OMP_NUM_THREADS": str(side.threads)}
        subprocess.run(command, env=environment, check=True)
        return json.loads(file.read_text(encoding="utf-8"))


class Times(NamedTuple):
    """Median seconds of a step and of its parts; `alone`: of the exchange with nothing else running."""

    step: float
    data: float
    compute: float
    communication: float
    alone: float
    bytes: int


def summary(runs: list[dict[str, Any]]) -> Times:
    """Return the medians over all steps of a side's runs."""
    steps = [row for run in runs for row in run["steps"]]
    whole = [row for row in steps if not row["left_out"]]
    data, rest = (median(row[name] for row in whole) for name in ("data", "rest"))
    silent = [row["rest"] for row in steps if row["left_out"]]
    compute = median(silent) if silent else rest
    step = median(row["data"] + row["rest"] for row in whole)
    alone = median(run["alone"] for run in runs)
    return Times(step, data, compute, rest - compute, alone, whole[-1].get("bytes", 0))


def rows(times: dict[Side, Times], images: int) -> list[list[str]]:
    """Return the table: throughput of each side, its ratios to the first two, and where its time goes."""
    first, every, _ = times
    head = ["processes x threads", "images/s", f"against {first}", f"against {every}", "step"]
    body = [
        [
            str(side),
            f"{images / found.step:.2f}",
            *(ratio(times[other].step, found.step) for other in (first, every)),
            *(f"{seconds:.2f} s" for seconds in found[:4]),
        ]
        for side, found in times.items()
    ]
    return [[*head, "data", "compute", "communication"], *body]


def report(rounds: int, steps: int, opts: list[str]) -> str:
    """Run all sides; return the table and a sentence on the exchange."""
    cores = usable_cores()
    sides = dict.fromkeys((Side(1, 1), Side(1, cores), Side(2, max(1, cores // 2))))
    runs: dict[Side, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            runs[side].append(run_side(side, steps, opts))
    times = {side: summary(found) for side, found in runs.items()}
    images = load_config(CONFIG, [*options(), *opts]).SOLVER.IMS_PER_BATCH
    return f"{table(rows(times, images))}\n\n{exchanged(*times.values())}"


def exchanged(*times: Times) -> str:
    """Return a sentence on what the last side exchanged."""
    two = times[-1]
    if not two.bytes:
        return "Only DDP's exchange can be left out; any other is part of compute."
    return f"{two.bytes / MB:.1f} MB of gradients a step; the exchange alone takes {two.alone:.2f} s."


def main() -> None:
    """Write the images, run the sides and print the table; or run as a process of a side."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how often each side runs")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of a side in a round")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to override")
    add_launch_arguments(parser)
    args = parser.parse_intermixed_args()
    if args.child:
        sys.exit(launch(work, args))
    with tempfile.TemporaryDirectory() as folder:
        write_shapes(Path(folder), IMAGES)
        os.environ["DETECTRON2_DATASETS"] = folder
        print(machine(), end="\n\n")
        print(report(args.rounds, args.steps, args.opts))


if __name__ == "__main__":
    main()
