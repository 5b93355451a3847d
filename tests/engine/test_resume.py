"""A run that is killed several times ends as an undisturbed one."""

import os
import random
import re
import signal
import time

import pytest
from process_runs import assert_same_weights, curve, until
from tiny_runs import EOMT, run_train

from mask2former.engine.checkpoint.run_folder import POINTER
from mask2former.utils.atomic_files import UNFINISHED

RUN = {"SOLVER__MAX_ITER": 40, "SOLVER__CHECKPOINT_PERIOD": 4, "TEST__EVAL_PERIOD": 8}
RUN["SOLVER__LR_SCHEDULER_NAME"] = "WarmupPolyLR"


def saved_steps(folder):
    pointer = folder / POINTER
    name = pointer.read_text() if pointer.exists() else ""
    return int(re.search(r"\d+", name)[0]) + 1 if "0" in name else 0


@pytest.mark.slow
def test_a_run_killed_ten_times_equals_an_undisturbed_one(server, tmp_path):
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    server.start(unbroken, **RUN).finish(seconds=120)

    def is_writing():
        return any(broken.glob(f"{UNFINISHED}-*.pth"))

    def starts():
        log = broken / "log.txt"
        return re.findall(r"steps (\d+) to", log.read_text()) if log.exists() else []

    rng = random.Random(0)
    halfway_through_a_write = 0
    for attempt in range(10):
        safe, earlier = saved_steps(broken), len(starts())
        command = server.start(broken, "--resume", **RUN)
        if attempt % 3 == 0:
            until(is_writing, seconds=10)
        else:
            time.sleep(rng.uniform(0.1, 1.0))
        os.kill(command.pid, signal.SIGKILL)
        assert command.wait()[0] == -signal.SIGKILL, "the run ended before it was killed ten times"
        halfway_through_a_write += is_writing()
        new = starts()[earlier:]  # none if it was killed before it began
        assert not new or safe <= int(new[-1])
        assert saved_steps(broken) >= safe
    assert halfway_through_a_write >= 2

    server.start(broken, "--resume", **RUN).finish(seconds=120)
    assert str(curve(broken)) == str(curve(unbroken))  # as text, since NaN is not equal to itself
    assert_same_weights(broken, unbroken)
    assert not list(broken.glob(f"*{UNFINISHED}*"))


def test_resuming_a_finished_run_evaluates_it_and_adds_no_line(server, tmp_path):
    run = {**RUN, "SOLVER__MAX_ITER": 4}
    server.start(tmp_path, **run).finish()
    before = (tmp_path / "metrics.json").read_text()
    server.start(tmp_path, "--resume", **run).finish()
    assert (tmp_path / "metrics.json").read_text() == before


def test_other_groups_of_parameters_are_an_error_that_says_what_to_type(tiny_shapes, tmp_path, capsys):
    run = {**EOMT, "SOLVER__MAX_ITER": 1, "DATASETS__TEST": ()}
    assert run_train(tmp_path, **run) == 0
    changed = {"SOLVER__LAYER_DECAY": 0.5, "SOLVER__BASE_LR": 0.1, "SOLVER__VIT_WARMUP_ITERS": 5}
    assert run_train(tmp_path, "--resume", **run, **changed) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "the run in OUTPUT_DIR does not fit this config" in last
    assert last.endswith("other groups of parameters; type SOLVER.LAYER_DECAY 1.0 SOLVER.VIT_WARMUP_ITERS 0")
