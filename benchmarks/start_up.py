"""Measure how long the command and a predictor take to start, for docs/benchmarks.md.

    python benchmarks/start_up.py

Every run is a fresh process on one thread, after one that fills the caches. The figures are medians of
processor time, user and system, which other programs disturb less than time on the clock.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import torch
from measure import run_alone, table

from mask2former.config import load_config
from mask2former.engine.build import build_model

CONFIG = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
RUNS = 5
COMMANDS = ("--help", "predict --help", "train --help")
STEPS = """
import json, sys, time
marks = [time.process_time()]
import torch
marks.append(time.process_time())
from mask2former import Predictor
marks.append(time.process_time())
Predictor(sys.argv[1])
marks.append(time.process_time())
print(json.dumps(marks))
"""
STEP_NAMES = (
    "`import torch`",
    "`from mask2former import Predictor`, after it",
    "`Predictor` of R50, from a file",
)


def save_drawn_model(path: Path) -> None:
    """Write a checkpoint of R50 for COCO panoptic with random weights."""
    torch.manual_seed(0)
    cfg = load_config(CONFIG, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    torch.save({"model": build_model(cfg).state_dict(), "config": cfg.dump()}, path)


def run(*arguments: str) -> str:
    """Run Python in a fresh process on one thread, and return its output."""
    command = [sys.executable, *arguments]
    # Bytecode is kept, as where the package is installed; without it, modules are compiled in each process
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def command_seconds(command: str) -> float:
    """Return the processor time of one run of `mask2former`, from its start to its end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run("-m", "mask2former", *command.split())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def step_seconds(checkpoint: Path) -> list[float]:
    """Return the processor time of each of STEPS."""
    marks = json.loads(run("-c", STEPS, str(checkpoint)))
    return [end - start for start, end in pairwise(marks)]


def measure(checkpoint: Path) -> dict[str, float]:
    """Return the seconds of everything, once."""
    commands = {f"`mask2former {command}`": command_seconds(command) for command in COMMANDS}
    return {**commands, **dict(zip(STEP_NAMES, step_seconds(checkpoint), strict=True))}


def report() -> str:
    """Return the table; see above."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder, "model.pth")
        save_drawn_model(checkpoint)
        _, *runs = [measure(checkpoint) for _ in range(1 + RUNS)]
    rows = [[name, f"{statistics.median(run[name] for run in runs):.2f} s"] for name in runs[0]]
    return table([["what", "processor time"], *rows])


if __name__ == "__main__":
    run_alone(report)
