"""A run that is killed several times ends as an undisturbed one."""

import os
import random
import re
import signal
import time

import pytest
from process_runs import assert_same_weights, curve

from mask2former.engine.checkpoint.run_folder import POINTER
from mask2former.utils.atomic_files import UNFINISHED

STEPS = 40
PERIOD = 4
KILLS = 10


@pytest.fixture
def start(server):
    """Return a function that starts a run in a folder."""
    options = {"SOLVER__CHECKPOINT_PERIOD": PERIOD, "TEST__EVAL_PERIOD": 2 * PERIOD}
    options["SOLVER__LR_SCHEDULER_NAME"] = "WarmupPolyLR"

    def start(folder, *flags, steps=STEPS):
        return server.start(folder, *flags, SOLVER__MAX_ITER=steps, **options)

    return start


def wait_for_a_write(folder, seconds):
    """Wait until a checkpoint is being written."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if any(folder.glob(f"{UNFINISHED}-*.pth")):
            return
        time.sleep(0.002)


def saved_steps(folder):
    """Return the number of steps in the last checkpoint."""
    pointer = folder / POINTER
    name = pointer.read_text() if pointer.exists() else ""
    return int(re.search(r"\d+", name)[0]) + 1 if "0" in name else 0


@pytest.mark.slow
def test_a_run_killed_ten_times_equals_an_undisturbed_one(start, tmp_path):
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    start(unbroken).finish(seconds=120)

    rng = random.Random(0)
    halfway_through_a_write = 0
    for attempt in range(KILLS):
        safe = saved_steps(broken)
        command = start(broken, "--resume")
        if attempt % 3 == 0:
            wait_for_a_write(broken, seconds=10)
        else:
            time.sleep(rng.uniform(0.1, 1.0))
        os.kill(command.pid, signal.SIGKILL)
        assert command.wait()[0] == -signal.SIGKILL, "the run ended before it was killed ten times"
        halfway_through_a_write += any(broken.glob(f"{UNFINISHED}-*.pth"))
        starts = re.findall(r"steps (\d+) to", (broken / "log.txt").read_text())
        assert not starts or safe <= int(starts[-1]) or attempt == 0
        assert saved_steps(broken) >= safe
    assert halfway_through_a_write >= 2

    start(broken, "--resume").finish(seconds=120)
    assert str(curve(broken)) == str(curve(unbroken))  # as text, since NaN is not equal to itself
    assert_same_weights(broken, unbroken)
    assert not list(broken.glob(f"*{UNFINISHED}*"))


def test_resuming_a_finished_run_evaluates_it_and_adds_no_line(start, tmp_path):
    start(tmp_path, steps=4).finish(seconds=120)
    before = (tmp_path / "metrics.json").read_text()
    start(tmp_path, "--resume", steps=4).finish(seconds=120)
    assert (tmp_path / "metrics.json").read_text() == before
