"""Tests of real processes: a server that starts them quickly, and comparison of metrics."""

import json
import math
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from tiny_runs import CONFIG, tiny_options

from mask2former.engine.metrics_log import read_metrics

LONG = bool(os.environ.get("M2F_LONG_TESTS"))  # run tests that take minutes
TIMES = {"time", "data_time", "eta_seconds", "memory_mb"}


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def slurm_variables(**values):
    """Return the variables of srun, given without `SLURM_`."""
    return {f"SLURM_{name}": str(value) for name, value in values.items()}


def curve(folder):
    """Return all metrics except times; NaN for a class without objects."""
    return [
        {name: math.nan if value is None else value for name, value in line.items() if name not in TIMES}
        for line in read_metrics(folder / "metrics.json")
    ]


def assert_close(found, expected):
    """Assert that two curves differ by rounding only."""
    for line, wanted in zip(found, expected, strict=True):
        assert line == pytest.approx(wanted, rel=1e-3, abs=1e-4, nan_ok=True)


def assert_same_weights(found, expected):
    """Assert that two runs have ended with equal weights."""
    files = [torch.load(folder / "model_final.pth", weights_only=True) for folder in (found, expected)]
    for name, tensor in files[1]["model"].items():
        assert torch.equal(files[0]["model"][name], tensor), name


def until(condition, seconds=60):
    """Wait for the condition, and return its value."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"timed out after {seconds} s"
        time.sleep(0.005)
    return found


class Command:
    def __init__(self, log):
        self.log = log

    @property
    def pid(self):
        return int(until(self.log.with_suffix(".pid").exists) and self.log.with_suffix(".pid").read_text())

    def children(self):
        """Return the living processes that it launched, in order of rank."""
        listed = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        helpers = {
            child for child in listed if b"resource_tracker" in Path(f"/proc/{child}/cmdline").read_bytes()
        }
        return [int(child) for child in listed if child not in helpers]

    def printed(self):
        return self.log.read_text() if self.log.exists() else ""

    def ended(self):
        return self.log.with_suffix(".code").exists()

    def wait(self, seconds=60):
        """Return the exit code and what was printed."""
        until(self.ended, seconds)
        return int(self.log.with_suffix(".code").read_text()), self.printed()

    def finish(self, code=0, seconds=60):
        """Wait for the exit with `code`, and return what was printed."""
        found, log = self.wait(seconds)
        assert found == code, log[-3000:]
        return log


class Server:
    """Client of `fork_server.py`."""

    def __init__(self, folder):
        self.folder, self.started = folder, 0
        script = Path(__file__).with_name("fork_server.py")
        self.temporary = Path(tempfile.mkdtemp())  # not below `folder`: a socket's path has 107 characters
        env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
        env["TMPDIR"] = str(self.temporary)
        env["PYTHONPATH"] = os.pathsep.join([str(script.parent), str(script.parents[2])])
        self.process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, text=True, bufsize=1, env=env
        )

    def start(self, output, *flags, environ=None, **changes):
        self.started += 1
        log = self.folder / f"{self.started}.log"
        argv = ["--config-file", str(CONFIG), *flags, *tiny_options(OUTPUT_DIR=output, **changes)]
        wanted = {"argv": argv, "environ": environ or {}, "log": str(log)}
        self.process.stdin.write(json.dumps(wanted) + "\n")
        return Command(log)

    def start_two_machines(self, output, *flags, order=(0, 1), **options):
        """Start two launchers of one process each, which meet at an address other than the default."""
        url = f"tcp://127.0.0.2:{free_port()}"
        flags = (*flags, "--num-processes", "1", "--num-machines", "2", "--dist-url", url)
        return [self.start(output, *flags, "--machine-rank", str(rank), **options) for rank in order]

    def stop(self):
        """Stop the server; return the names of temporary files that commands have left behind."""
        self.process.stdin.close()
        self.process.wait()
        names = [path.name for path in self.temporary.iterdir()]
        shutil.rmtree(self.temporary)
        return [name for name in names if not name.startswith("torchinductor_")]  # a cache that torch keeps
