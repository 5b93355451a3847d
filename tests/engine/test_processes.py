"""Every way to start several processes starts the same job, and it does what one process does alone."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from process_runs import assert_close, curve, free_port
from tiny_runs import CONFIG, tiny_options

ROOT = Path(__file__).parents[2]
PYTHONS_WARNING = r"\w+Warning: |^\[W"  # and of torch's C++
STEPS = {"SOLVER__MAX_ITER": 3}


@pytest.fixture(scope="module")
def alone(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    code, log = server.start(folder, **STEPS).wait()
    assert code == 0, log
    return curve(folder)


def slurm(number, total, port):
    """What srun would set for task `number` of `total`, all on one node."""
    return {
        "SLURM_JOB_ID": str(port - 15_000),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": str(total),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_TASKS_PER_NODE": str(total),
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": str(number),
        "SLURM_NODEID": "0",
    }


def one_launcher(server, folder):
    return [server.start(folder, "--num-processes", "2", **STEPS)]


def two_machines(server, folder):
    """Two launchers that meet at an address which is not the one they would take by themselves."""
    flags = ["--num-processes", "1", "--num-machines", "2", "--dist-url", f"tcp://127.0.0.2:{free_port()}"]
    return [server.start(folder, *flags, "--machine-rank", str(number), **STEPS) for number in (1, 0)]


def srun_with_a_task_a_process(server, folder):
    url = f"tcp://127.0.0.1:{free_port()}"
    return [
        server.start(folder, "--dist-url", url, environ=slurm(number, 2, free_port()), **STEPS)
        for number in (0, 1)
    ]


def srun_with_a_task_a_machine(server, folder):
    port = 15_000 + free_port() % 15_000
    return [
        server.start(folder, "--num-processes", "1", environ=slurm(number, 2, port), **STEPS)
        for number in (0, 1)
    ]


@pytest.mark.parametrize(
    "start", [one_launcher, two_machines, srun_with_a_task_a_process, srun_with_a_task_a_machine]
)
def test_all_start_the_same_job(start, server, alone, tmp_path):
    for command in start(server, tmp_path):
        code, log = command.wait()
        assert code == 0 and not re.search(PYTHONS_WARNING, log), log
    assert_close(curve(tmp_path), alone)


def test_torchrun(tiny_shapes, alone, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    argv = [
        str(ROOT / "train_net.py"),
        "--config-file",
        str(CONFIG),
        *tiny_options(OUTPUT_DIR=tmp_path, **STEPS),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*torchrun, *argv], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and not done.stderr, done.stderr[-3000:]
    assert_close(curve(tmp_path), alone)
