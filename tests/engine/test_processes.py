"""Every way to start several processes starts the same job, and it does what one process does alone."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from process_runs import LONG, assert_close, curve, free_port, until
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


@pytest.fixture
def torchrun(tiny_shapes, tmp_path):
    """Starts torchruns of this command; what they print as errors goes to files of their own."""
    started = []

    def start(*flags, environ=None, **changes):
        argv = [sys.executable, "-m", "torch.distributed.run", *flags, str(ROOT / "train_net.py")]
        argv += ["--config-file", str(CONFIG), *tiny_options(OUTPUT_DIR=tmp_path / "run", **changes)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **(environ or {})}
        errors = tmp_path / f"{len(started)}.log"
        with errors.open("w") as file:
            started.append(subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=file))
        return started[-1], errors

    yield start
    for process in started:
        process.terminate()
        process.wait()


def test_torchrun(torchrun, alone, tmp_path):
    started, errors = torchrun("--standalone", "--nproc-per-node", "2", **STEPS)
    assert started.wait(120) == 0 and not errors.read_text(), errors.read_text()[-3000:]
    assert_close(curve(tmp_path / "run"), alone)


def worker_of(started):
    """The process that a torchrun has started."""
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    [worker] = [child for child in children if "train_net" in Path(f"/proc/{child}/cmdline").read_text()]
    return int(worker)


def saved_in_attempt(log):
    """The numbers of attempts that have saved a checkpoint."""
    attempts = log.read_text().split("INFO environment")[1:] if log.exists() else []
    return [number for number, text in enumerate(attempts) if "saved" in text]


# The names that a launch may have: of its own, or that of the store at which its processes meet
@pytest.mark.skipif(not LONG, reason="a minute; M2F_LONG_TESTS=1")
@pytest.mark.parametrize(
    ("flags", "environ"),
    [((), {}), (("--rdzv-id", "a-job"), {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"})],
)
def test_torchruns_of_two_machines_restart_together(server, torchrun, tmp_path, flags, environ):
    """A process of each is killed; the launchers count restarts each for itself."""
    options = {"SOLVER__MAX_ITER": 240, "SOLVER__CHECKPOINT_PERIOD": 5}
    flags = [
        *flags,
        "--nnodes",
        "2",
        "--nproc-per-node",
        "1",
        "--max-restarts",
        "2",
        "--rdzv-backend",
        "c10d",
    ]
    flags += ["--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--local-addr", "127.0.0.1"]
    both = [torchrun(*flags, environ=environ, **options) for _ in range(2)]
    log = tmp_path / "run" / "log.txt"
    for number, (started, _) in enumerate(both):
        until(lambda number=number: number in saved_in_attempt(log))
        os.kill(worker_of(started), signal.SIGKILL)
    for started, errors in both:
        assert started.wait(90) == 0, errors.read_text()[-3000:]
    begun = re.findall(r"steps (\d+) to", log.read_text())
    assert len(begun) == 3 and int(begun[1]) > 0 and int(begun[2]) > int(begun[1])
    assert server.start(tmp_path / "unbroken", "--num-processes", "2", **options).wait()[0] == 0
    ends = [torch.load(tmp_path / run / "model_final.pth")["model"] for run in ("run", "unbroken")]
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())
