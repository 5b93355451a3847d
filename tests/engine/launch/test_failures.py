"""Runs with killed, preempted, late or failing processes: messages, exit codes and results."""

import contextlib
import functools
import os
import random
import re
import signal
import time

import pytest
import torch
from process_runs import LONG, assert_close, assert_same_weights, curve, until

from mask2former.engine.checkpoint.run_folder import POINTER
from mask2former.engine.errors import PREEMPTED
from mask2former.utils.atomic_files import UNFINISHED

STEPS, KILLS = (60, 10) if LONG else (24, 3)
PERIOD = 4
RUN = {"SOLVER__MAX_ITER": STEPS, "SOLVER__CHECKPOINT_PERIOD": PERIOD, "TEST__EVAL_PERIOD": 2 * PERIOD}
TWO = ("--num-processes", "2")


@pytest.fixture(scope="module")
def unbroken_runs(server, tmp_path_factory):
    """Return a function: strategy -> folder of an undisturbed run of two processes, made once."""

    @functools.cache
    def find(strategy):
        folder = tmp_path_factory.mktemp(strategy)
        server.start(folder, *TWO, SOLVER__STRATEGY=strategy, **RUN).finish()
        return folder

    return find


@pytest.fixture(scope="module")
def unbroken(unbroken_runs):
    return unbroken_runs("ddp")


def assert_same_run(folder, unbroken):
    assert_close(curve(folder), curve(unbroken))
    assert_same_weights(folder, unbroken)


def attempts(folder):
    """Return how often training began in the folder."""
    log = folder / "log.txt"
    return len(re.findall(r"steps \d+ to", log.read_text())) if log.exists() else 0


def kill_one(command, folder, rng, seen, in_a_write):
    """Kill a process of attempt `seen`, counted from 0, at a random time or while it writes."""
    until(lambda: attempts(folder) > seen or command.ended())
    if in_a_write:
        written = f"*{UNFINISHED}*"
        until(lambda: any("model_" in path.name for path in folder.glob(written)) or command.ended())
    else:
        time.sleep(rng.uniform(0.0, 0.5))
    if not command.ended():
        os.kill(rng.choice(command.children()), signal.SIGKILL)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"] if LONG else ["ddp"])
def test_a_run_killed_several_times_ends_as_the_undisturbed_one(server, unbroken_runs, tmp_path, strategy):
    rng = random.Random(0)
    options = {**RUN, "SOLVER__STRATEGY": strategy}
    command = server.start(tmp_path, *TWO, "--max-restarts", str(KILLS), **options)
    for number in range(KILLS):
        kill_one(command, tmp_path, rng, seen=number, in_a_write=number % 3 == 1)
    command.finish(seconds=120)
    assert attempts(tmp_path) == KILLS + 1
    assert_same_run(tmp_path, unbroken_runs(strategy))


def test_sharded_checkpoints_survive_kills_sigterm_and_a_full_disk(server, unbroken_runs, tmp_path):
    """One run: killed during a write, SIGTERM in an evaluation, then no disk space on one rank."""
    options = {**RUN, "SOLVER__STRATEGY": "fsdp", "SOLVER__CHECKPOINT_PERIOD": 5}
    environ = {"TEST_LONG_EVALUATION": "0"}
    command = server.start(tmp_path, *TWO, "--max-restarts", "1", environ=environ, **options)
    kill_one(command, tmp_path, random.Random(0), seen=0, in_a_write=True)
    until(lambda: "evaluating" in command.printed())
    os.kill(command.children()[1], signal.SIGTERM)
    command.finish(PREEMPTED)
    assert attempts(tmp_path) == 2
    stopped = (tmp_path / POINTER).read_text()
    assert stopped == f"model_{2 * PERIOD - 1:07d}.sharded"

    command = server.start(tmp_path, *TWO, "--resume", environ={"TEST_FULL_DISK": "1 9 20000"}, **options)
    last = command.finish(1).splitlines()[-1]
    assert re.search(r"model_0000009\.sharded cannot be written \(process 1: .*Is the disk full", last)
    assert (tmp_path / POINTER).read_text() == stopped
    server.start(tmp_path, *TWO, "--resume", **options).finish()
    assert_same_run(tmp_path, unbroken_runs("fsdp"))


def test_a_restart_does_not_continue_an_earlier_run(server, tmp_path):
    """The first attempt is killed before the earlier run is set aside."""
    server.start(tmp_path, *TWO, SOLVER__MAX_ITER=1).finish()
    command = server.start(tmp_path, *TWO, "--max-restarts", "1", SOLVER__MAX_ITER=2)
    both = until(lambda: len(command.children()) == 2 and command.children())
    os.kill(both[0], signal.SIGKILL)
    command.finish()
    assert (tmp_path / "earlier_run_1" / "model_final.pth").exists()
    assert "steps 0 to 2" in (tmp_path / "log.txt").read_text()


def test_the_error_of_a_killed_process_is_shown(server, tmp_path):
    command = server.start(tmp_path, *TWO, SOLVER__MAX_ITER=5000)
    until(lambda: attempts(tmp_path))
    os.kill(command.children()[1], signal.SIGKILL)
    log = command.finish(1)
    assert log.splitlines()[-1].startswith("error: process 1 failed: Signal 9 (SIGKILL)")
    assert "Traceback" not in log


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_writes_a_checkpoint_and_exits_with_75(server, unbroken, tmp_path, processes):
    flags = ("--num-processes", str(processes))
    command = server.start(tmp_path, *flags, DATALOADER__NUM_WORKERS=1, **RUN)
    until(lambda: "step 3/" in command.printed())
    os.killpg(command.pid, signal.SIGTERM)  # as a scheduler does: the launcher and all below it
    assert "Traceback" not in command.finish(PREEMPTED)
    saved = (tmp_path / POINTER).read_text()
    assert torch.load(tmp_path / saved, weights_only=True)["iteration"] >= 2
    if processes == 1:  # two processes: see the next tests
        server.start(tmp_path, *TWO, "--resume", **RUN).finish()
        runs = [[line for line in curve(path) if line["iteration"] < 24] for path in (tmp_path, unbroken)]
        assert_close(*runs)  # rounding errors grow


def test_sigterm_to_one_process_is_enough(server, tmp_path):
    command = server.start(tmp_path, *TWO, "--max-restarts", "2", SOLVER__MAX_ITER=5000)
    until(lambda: "step 3/" in command.printed())
    os.kill(command.children()[1], signal.SIGTERM)
    command.finish(PREEMPTED)
    assert attempts(tmp_path) == 1 and (tmp_path / POINTER).exists()


def test_repeated_sigterm_does_not_end_a_process_that_waits_for_the_checkpoint(server, tmp_path):
    """Rank 1 has left its training while rank 0 writes."""
    command = server.start(tmp_path, *TWO, SOLVER__MAX_ITER=5000)
    until(lambda: "step 3/" in command.printed())
    process = command.children()[1]
    while not command.ended():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)
        time.sleep(0.002)
    command.finish(PREEMPTED)
    assert (tmp_path / POINTER).exists()


def test_no_evaluation_is_lost(server, unbroken, tmp_path):
    """After SIGTERM an evaluation is finished; one in which a process was killed is repeated."""
    options = {**RUN, "SOLVER__CHECKPOINT_PERIOD": 5}
    stopped = []
    for flags, evaluation, number in (
        ((), 0, signal.SIGTERM),
        (["--resume"], (STEPS - 1) // (2 * PERIOD) - 1, signal.SIGKILL),
    ):
        environ = {"TEST_LONG_EVALUATION": str(evaluation)}
        command = server.start(tmp_path, *TWO, *flags, environ=environ, **options)
        until(lambda command=command: "evaluating" in command.printed())
        os.kill(command.children()[1], number)
        command.finish(PREEMPTED if number == signal.SIGTERM else 1)
        evaluated = [line["iteration"] for line in curve(tmp_path) if any("/" in name for name in line)]
        stopped.append(((tmp_path / POINTER).read_text(), evaluated))
    first, others = 2 * PERIOD - 1, list(range(2 * PERIOD - 1, STEPS - 1, 2 * PERIOD))
    assert stopped == [(f"model_{first:07d}.pth", [first]), ("model_final.pth", others)]
    server.start(tmp_path, *TWO, "--resume", **options).finish()
    assert_same_run(tmp_path, unbroken)


def test_a_timeout_names_the_late_process_and_what_it_was_doing(server, tmp_path):
    late = {
        "TEST_SLOW_STEP": r"in step 5 with \S+\.jpg \(64 x 64, \d objects\)",
        "TEST_SLOW_LOADER": "reading the images of step 5",
    }
    flags = (*TWO, "--timeout", "6")
    commands = [server.start(tmp_path / name, *flags, environ={name: "1 5 1000"}, **RUN) for name in late]
    for command, what in zip(commands, late.values(), strict=True):
        log = command.finish(1)
        last = rf"process 0 waited 6 s \(--timeout\) for others\. process 1, for \d+ s: {what}$"
        assert re.search(last, log.splitlines()[-1])
        warning = r"process {0}, for 5\.\d* s of at most 6 s \(--timeout\): {1}. The others: process"
        assert re.search(warning.format(0, "in step 5 with .*"), log)
        assert re.search(warning.format(1, what), log)  # the late one itself, in which nothing fails


def test_delays_below_the_timeout_change_nothing(server, unbroken, tmp_path):
    slow = {"TEST_SLOW_LOADER": "1 3 1", "TEST_SLOW_STEP": "0 5 1"}
    command = server.start(tmp_path, *TWO, "--timeout", "30", environ=slow, **RUN)
    command.finish()
    assert_same_run(tmp_path, unbroken)


@pytest.mark.parametrize(
    ("environ", "options", "message"),
    [
        ({"TEST_RAISE": "1 5 1"}, RUN, "ZeroDivisionError: in step 5"),
        ({}, {"SOLVER__IMS_PER_BATCH": 1}, "ValueError: SOLVER.IMS_PER_BATCH 1 is"),
        ({}, {"SOLVER__IMS_PER_BATCH": 3}, "ValueError: SOLVER.IMS_PER_BATCH is 3"),
        ({}, {"MODEL__WEIGHTS": "nowhere.pth"}, r"\S*WeightsError: .*nowhere.pth"),
    ],
)
def test_an_error_in_one_process_ends_all_and_user_errors_have_no_traceback(
    server, tmp_path, environ, options, message
):
    log = server.start(tmp_path, *TWO, environ=environ, **options).finish(1)
    assert re.match(rf"error: process \d failed: {message}", log.splitlines()[-1])
    assert ("Traceback" in log) == bool(environ)


def test_two_machines_restart_together(server, unbroken, tmp_path):
    first, second = server.start_two_machines(tmp_path, "--max-restarts", "1", **RUN)
    until((tmp_path / POINTER).exists)
    os.kill(second.children()[0], signal.SIGKILL)
    for command in (first, second):
        command.finish()
    assert attempts(tmp_path) == 2
    assert_same_run(tmp_path, unbroken)
