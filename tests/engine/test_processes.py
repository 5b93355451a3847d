"""All ways to start several processes give the same run as one process."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from process_runs import LONG, assert_close, assert_same_weights, curve, free_port, slurm_variables, until
from tiny_runs import CONFIG, tiny_options

ROOT = Path(__file__).parents[2]
WARNING = r"\w+Warning: |^\[W"  # also of torch's C++ code
STEPS = {"SOLVER__MAX_ITER": 3}


@pytest.fixture(scope="module")
def alone(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    server.start(folder, **STEPS).finish()
    return curve(folder)


def srun(server, folder, *flags):
    """Start two tasks of srun on one node."""
    job, node = free_port() % 15_000, {"STEP_NODELIST": "localhost", "STEP_TASKS_PER_NODE": 2, "NODEID": 0}
    step = slurm_variables(JOB_ID=job, STEP_ID=0, STEP_NUM_TASKS=2, **node)
    tasks = [step | slurm_variables(PROCID=number, LOCALID=number) for number in (0, 1)]
    return [server.start(folder, *flags, environ=task, **STEPS) for task in tasks]


def one_launcher(server, folder):
    return [server.start(folder, "--num-processes", "2", **STEPS)]


def two_machines(server, folder):
    return server.start_two_machines(folder, order=(1, 0), **STEPS)


def srun_with_a_task_a_process(server, folder):
    return srun(server, folder, "--dist-url", f"tcp://127.0.0.1:{free_port()}")


def srun_with_a_task_a_machine(server, folder):
    return srun(server, folder, "--num-processes", "1")


@pytest.mark.parametrize(
    "start", [one_launcher, two_machines, srun_with_a_task_a_process, srun_with_a_task_a_machine]
)
def test_launchers_give_the_run_of_one_process(start, server, alone, tmp_path):
    for command in start(server, tmp_path):
        assert not re.search(WARNING, log := command.finish()), log
    assert_close(curve(tmp_path), alone)


@pytest.fixture
def torchrun(tiny_shapes, tmp_path):
    """Return a function that starts this command by torchrun, and returns it with its file of stderr."""
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


TORCH_COMPLAINTS = re.compile(r"Traceback|\w+Warning:|^\[?[WE]\d{4} |^\[rank", re.MULTILINE)  # beside our log


def test_torchrun(torchrun, alone, tmp_path):
    started, errors = torchrun("--standalone", "--nproc-per-node", "2", **STEPS)
    assert started.wait(120) == 0, errors.read_text()[-3000:]
    assert not TORCH_COMPLAINTS.search(errors.read_text()), errors.read_text()[-3000:]
    assert_close(curve(tmp_path / "run"), alone)


def worker_of(started):
    """Return the process that a torchrun has started."""
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    [worker] = [child for child in children if "train_net" in Path(f"/proc/{child}/cmdline").read_text()]
    return int(worker)


def saved_in_attempt(log):
    """Return the numbers of the attempts that have saved a checkpoint."""
    attempts = log.read_text().split("INFO environment")[1:] if log.exists() else []
    return [number for number, text in enumerate(attempts) if "saved" in text]


# The run is recognized by the rendezvous store, or by --rdzv-id
@pytest.mark.skipif(not LONG, reason="a minute; M2F_LONG_TESTS=1")
@pytest.mark.parametrize(
    ("flags", "environ"), [((), {}), (("--rdzv-id", "a-job"), {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"})]
)
def test_torchruns_of_two_machines_restart_together(server, torchrun, tmp_path, flags, environ):
    """A process of each is killed; each launcher counts restarts for itself."""
    options = {"SOLVER__MAX_ITER": 240, "SOLVER__CHECKPOINT_PERIOD": 5}
    flags = [*flags, "--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "2"]
    flags += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}"]
    flags += ["--local-addr", "127.0.0.1"]
    both = [torchrun(*flags, environ=environ, **options) for _ in range(2)]
    log = tmp_path / "run" / "log.txt"
    for number, (started, _) in enumerate(both):
        until(lambda number=number: number in saved_in_attempt(log))
        os.kill(worker_of(started), signal.SIGKILL)
    for started, errors in both:
        assert started.wait(90) == 0, errors.read_text()[-3000:]
    begun = re.findall(r"steps (\d+) to", log.read_text())
    assert len(begun) == 3 and int(begun[1]) > 0 and int(begun[2]) > int(begun[1])
    server.start(tmp_path / "unbroken", "--num-processes", "2", **options).finish(seconds=180)
    assert_same_weights(tmp_path / "run", tmp_path / "unbroken")
