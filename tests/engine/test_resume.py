"""A run that is killed again and again must end as one that never was."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_runs import CONFIG, tiny_options

from mask2former.engine.checkpoint import POINTER, UNFINISHED
from mask2former.engine.metrics_log import read_metrics

STEPS = 40
PERIOD = 4
KILLS = 10
TIMES = {"time", "data_time", "eta_seconds", "memory_mb"}


class Runner:
    """The forking process, as a caller sees it."""

    def __init__(self, log):
        self.log = log
        script = Path(__file__).with_name("forking_trainer.py")
        env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self.process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("w"),
            text=True, bufsize=1, env=env,
        )  # fmt: skip

    def start(self, folder, *flags, steps=STEPS):
        options = tiny_options(
            OUTPUT_DIR=folder,
            SOLVER__MAX_ITER=steps,
            SOLVER__CHECKPOINT_PERIOD=PERIOD,
            TEST__EVAL_PERIOD=2 * PERIOD,
            SOLVER__LR_SCHEDULER_NAME="WarmupPolyLR",
        )
        self.process.stdin.write(json.dumps(["--config-file", str(CONFIG), *flags, *options]) + "\n")
        return int(self.process.stdout.readline())

    def wait(self):
        """The exit code."""
        return int(self.process.stdout.readline())

    def finish(self):
        assert self.wait() == 0, self.log.read_text()[-3000:]


@pytest.fixture(scope="module")
def runner(tiny_shapes, tmp_path_factory):
    runner = Runner(tmp_path_factory.mktemp("log") / "log.txt")
    yield runner
    runner.process.stdin.close()
    runner.process.terminate()
    runner.process.wait()


def curve(folder):
    """All numbers of the metrics that are not times."""
    lines = read_metrics(folder / "metrics.json")
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def wait_for_a_write(folder, seconds):
    """Return in the middle of the writing of a checkpoint, if one begins in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if any(folder.glob(f"*.pth{UNFINISHED}")):
            return
        time.sleep(0.002)


def saved_steps(folder):
    """How many steps are safe by the pointer."""
    pointer = folder / POINTER
    name = pointer.read_text() if pointer.exists() else ""
    return int(re.search(r"\d+", name)[0]) + 1 if "0" in name else 0


@pytest.mark.slow
def test_killed_ten_times_the_curve_is_that_of_an_unbroken_run(runner, tmp_path):
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    runner.start(unbroken)
    runner.finish()

    rng = random.Random(0)
    halfway_through_a_write = 0
    for attempt in range(KILLS):
        safe = saved_steps(broken)
        child = runner.start(broken, "--resume")
        if attempt % 3 == 0:
            wait_for_a_write(broken, seconds=10)
        else:
            time.sleep(rng.uniform(0.1, 1.0))
        os.kill(child, signal.SIGKILL)
        assert runner.wait() == -signal.SIGKILL, "the run ended before it was killed ten times"
        halfway_through_a_write += any(broken.glob(f"*.pth{UNFINISHED}"))
        starts = re.findall(r"steps (\d+) to", (broken / "log.txt").read_text())
        assert not starts or safe <= int(starts[-1]) or attempt == 0
        assert saved_steps(broken) >= safe
    assert halfway_through_a_write >= 2

    runner.start(broken, "--resume")
    runner.finish()
    assert curve(broken) == curve(unbroken)
    ends = [torch.load(folder / "model_final.pth", weights_only=True) for folder in (broken, unbroken)]
    assert ends[0]["iteration"] == ends[1]["iteration"] == STEPS - 1
    for name, tensor in ends[1]["model"].items():
        assert torch.equal(ends[0]["model"][name], tensor), name
    assert not list(broken.glob(f"*{UNFINISHED}"))


def test_resuming_a_finished_run_evaluates_it_and_adds_no_line(runner, tmp_path):
    runner.start(tmp_path, steps=4)
    runner.finish()
    before = (tmp_path / "metrics.json").read_text()
    runner.start(tmp_path, "--resume", steps=4)
    runner.finish()
    assert (tmp_path / "metrics.json").read_text() == before
