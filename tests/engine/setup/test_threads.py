"""Threads of torch: their number, and that they stop spinning while other programs use the processor."""

import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import torch

from mask2former.engine.setup import threads
from mask2former.engine.setup.begin import begin_run
from mask2former.engine.setup.cores import affinity

UNSET = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"))
SPINNING = """
import time, torch
from mask2former.engine.setup.threads import idle_team

def used():
    x.add_(1)
    start = time.process_time()
    for _ in range(8):
        x.add_(1)
        time.sleep(0.02)
    return time.process_time() - start

torch.set_num_threads(PROCESSORS)
x = torch.ones(PROCESSORS * 2**16)
alone = used()
with idle_team(2):
    accompanied = used()
print(alone, accompanied, used())
"""


def two_processors_and_libgomp():
    return affinity() >= 2 and threads._libgomp() is not None


@pytest.fixture
def environ(monkeypatch):
    """Return a function that sets environment variables, and makes `torch` believe it has eight threads."""
    for name in (*UNSET, "LOCAL_WORLD_SIZE", "WORLD_SIZE", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(threads, "why_not_adapted", lambda count, environ: "not in this test")

    def share(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return threads.share_processor.__wrapped__(), chosen

    return share


def test_torch_gets_the_share_of_the_process(environ):
    text, chosen = environ(LOCAL_WORLD_SIZE="4", WORLD_SIZE="4")
    assert chosen == [2]
    assert text.startswith("2 threads (") and text.endswith("shared by 4 processes)")


@pytest.mark.parametrize("variables", [{"OMP_NUM_THREADS": "8"}, {"MKL_NUM_THREADS": "8"}])
def test_a_number_that_the_user_has_set_stays(environ, variables):
    text, chosen = environ(LOCAL_WORLD_SIZE="4", WORLD_SIZE="4", **variables)
    assert (text, chosen) == (f"8 threads ({next(iter(variables))} is set)", [])


def test_a_run_logs_its_threads(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    threads.share_processor.cache_clear()
    begin_run(str(tmp_path), training=False)
    threads.share_processor.cache_clear()
    found = rf"CPU: {os.cpu_count()} cores, {torch.get_num_threads()} threads? \(OMP_NUM_THREADS is set\)"
    assert re.search(found, (tmp_path / "log.txt").read_text())


@pytest.mark.parametrize(
    ("count", "environ", "reason"),
    [
        (2, {"OMP_WAIT_POLICY": "ACTIVE"}, "OMP_WAIT_POLICY is set"),
        (2, {"GOMP_SPINCOUNT": "0"}, "GOMP_SPINCOUNT is set"),
        (1, {}, "a single thread does not wait"),
        (3, {}, "3 threads have 8 processors"),
    ],
)
def test_why_waiting_is_not_adapted(monkeypatch, count, environ, reason):
    monkeypatch.setattr(threads, "affinity", lambda: 8)
    assert threads.why_not_adapted(count, environ) == reason


def test_waiting_is_not_adapted_where_the_system_lacks_what_it_takes(monkeypatch, tmp_path):
    monkeypatch.setattr(threads, "affinity", lambda: 2)
    monkeypatch.setattr(threads, "_libgomp", lambda: None)
    assert threads.why_not_adapted(2, {}) == "torch's OpenMP library is not libgomp"
    monkeypatch.setattr(threads, "TASKS", tmp_path)
    assert "does not tell how long" in threads.why_not_adapted(2, {})


@pytest.mark.parametrize(
    ("ran", "waited", "contended"),
    [(0.8, 1.2, True), (1.4, 0.6, False), (0.01, 0.02, False), (0.5, 0.5, True), (0, 0, False)],
)
def test_contention_is_waiting_for_nearly_half_the_time(ran, waited, contended):
    assert threads.is_contended((5.0, 7.0), (5.0 + ran, 7.0 + waited), seconds=1.0) == contended


def test_the_times_of_all_threads_are_added(tmp_path):
    for number, text in enumerate(("1500000000 250000000 7\n", "500000000 0 1\n")):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "schedstat").write_text(text)
    assert threads.thread_times(tmp_path) == (2.0, 0.25)


@pytest.mark.skipif(not threads.TASKS.exists(), reason="the system has no /proc")
def test_the_times_are_those_of_this_process():
    before, start = threads.thread_times(), time.process_time()
    sum(range(5_000_000))
    ran, used = threads.thread_times()[0] - before[0], time.process_time() - start
    assert ran == pytest.approx(used, abs=0.05)


def test_spinning_is_tried_again_after_longer_and_longer(monkeypatch):
    """Busy eight times, then free once, then busy."""
    looks = iter([*[True] * 8, False, True])
    pauses, held = [], []

    class DoneError(Exception):
        pass

    def is_contended(before, after, seconds):
        try:
            return next(looks)
        except StopIteration:
            raise DoneError from None

    @contextmanager
    def idle_team(count):
        held.append(count)
        yield
        held.append(0)

    def sleep(seconds):
        if held and held[-1]:
            pauses.append(seconds)

    monkeypatch.setattr(threads, "is_contended", is_contended)
    monkeypatch.setattr(threads, "idle_team", idle_team)
    monkeypatch.setattr(threads.time, "sleep", sleep)
    with pytest.raises(DoneError):
        threads._adapt_waiting(3)
    assert pauses == [2, 4, 8, 16, 32, 60, 60, 60, 2]
    assert held == [3, 0] * 9


@pytest.mark.skipif(not two_processors_and_libgomp(), reason="needs two processors and libgomp")
def test_beside_an_idle_team_threads_do_not_spin():
    """Eight short computations, 20 ms apart: the other threads spin after each, for some milliseconds."""
    program = SPINNING.replace("PROCESSORS", str(affinity()))
    environment = {name: value for name, value in os.environ.items() if name not in UNSET}
    run = [sys.executable, "-c", program]
    printed = subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout
    alone, accompanied, afterwards = (float(word) for word in printed.split())
    assert accompanied < alone / 4 and accompanied < afterwards / 4
