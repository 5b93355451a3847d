"""The best model by a metric, and runs that end early, with results that a test writes."""

import math
import shutil

import pytest
import torch
from process_runs import curve
from tiny_runs import run_train, tiny_config

from mask2former.engine.checkpoint.run_folder import BEST, FINAL, POINTER, RunFolder
from mask2former.engine.evaluate import Evaluation
from mask2former.engine.hooks.evaluation import EvaluationHook
from mask2former.engine.setup.resolve import resolve_config
from mask2former.predictor import Predictor

METRIC = "panoptic_seg/PQ"
RUN = {"TEST__BEST_METRIC": METRIC, "TEST__EVAL_PERIOD": 1, "SOLVER__CHECKPOINT_PERIOD": 1}
RUN |= {"SOLVER__MAX_ITER": 6, "SOLVER__BASE_LR": 0.01}
STOPPED = {**RUN, "SOLVER__EARLY_STOPPING": 2}


@pytest.fixture
def write_results(monkeypatch):
    """Return a function that sets the PQ of each step."""
    steps, run = [], EvaluationHook._run

    def note_step(hook, trainer):
        steps.append(trainer.done - 1)
        run(hook, trainer)

    def set_values(*values):
        results = [{"panoptic_seg": {"PQ": value, "PQ-box": value}, "segm": {"AP": 0.0}} for value in values]
        monkeypatch.setattr(Evaluation, "__call__", lambda self, model: results[steps[-1]])

    monkeypatch.setattr(EvaluationHook, "_run", note_step)
    return set_values


def read(file):
    return torch.load(file, weights_only=True)


def results(folder):
    """Return the lines of results: step, PQ, best PQ."""
    return [
        tuple(line[name] for name in ("iteration", METRIC, f"best/{METRIC}"))
        for line in curve(folder)
        if METRIC in line
    ]


def resume_after(step, source, folder, **changes):
    """Continue in `folder` the run in `source` as it was after a step and its evaluation."""
    name = f"model_{step:07d}.pth"
    folder.mkdir()
    for file in (name, "metrics.json"):
        shutil.copy(source / file, folder)
    (folder / POINTER).write_text(name)
    assert run_train(folder, "--resume", **changes) == 0


def test_the_best_is_the_first_with_the_highest_value(tiny_shapes, tmp_path, write_results):
    write_results(1.0, math.nan, 4.0, 4.0, 2.0, 3.0)
    assert run_train(tmp_path, **RUN, SOLVER__EMA_DECAY=0.3) == 0
    best, same_step = read(tmp_path / BEST), read(tmp_path / "model_0000002.pth")
    assert best["iteration"] == 2 and best["best"] == {METRIC: 4.0}
    for name, tensor in Predictor(str(tmp_path / BEST)).model.state_dict().items():
        assert torch.equal(tensor, same_step["model"][name]), name
    assert [line[2] for line in results(tmp_path)] == [1.0, 1.0, 4.0, 4.0, 4.0, 4.0]
    assert (tmp_path / POINTER).read_text() == FINAL and "optimizer" not in best


def test_a_run_is_not_resumed_from_the_best_model(tiny_shapes, tmp_path, write_results):
    write_results(1.0)
    assert run_train(tmp_path, **{**RUN, "SOLVER__MAX_ITER": 1}) == 0
    for file in (FINAL, "model_0000000.pth"):
        (tmp_path / file).write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be resumed") as error:
        RunFolder(tmp_path).load_last()
    assert BEST not in str(error.value)


def test_a_resumed_run_remembers_the_best(tiny_shapes, tmp_path, write_results):
    write_results(1.0, 4.0, 2.0, 3.0, 5.0, 4.0)
    assert run_train(tmp_path / "whole", **RUN) == 0
    write_results(1.0, 4.0, 2.0, 3.0, 5.0, 4.0)
    resume_after(2, tmp_path / "whole", tmp_path / "resumed", **RUN)
    assert results(tmp_path / "resumed") == results(tmp_path / "whole")
    found, expected = read(tmp_path / "resumed" / BEST), read(tmp_path / "whole" / BEST)
    assert found["iteration"] == expected["iteration"] == 4
    assert all(torch.equal(found["model"][name], tensor) for name, tensor in expected["model"].items())
    write_results(
        1.0, 4.0, 2.0, 3.0, 3.5, 3.9
    )  # not better than step 1, which only the file of metrics knows
    resume_after(2, tmp_path / "whole", tmp_path / "worse", **RUN)
    assert not (tmp_path / "worse" / BEST).exists()


def test_an_unknown_metric_is_an_error_that_lists_the_others(tiny_shapes, tmp_path, write_results, capsys):
    write_results(1.0)
    assert run_train(tmp_path, **{**RUN, "TEST__BEST_METRIC": "panoptic/PQ"}) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    expected = "TEST.BEST_METRIC is 'panoptic/PQ'; this run's metrics are: panoptic_seg/PQ, segm/AP"
    assert error == f"error: {expected}"
    write_results(1.0)
    assert run_train(tmp_path, "--resume", **{**RUN, "SOLVER__MAX_ITER": 1}) == 0
    assert read(tmp_path / BEST)["iteration"] == 0


def test_a_run_ends_when_it_has_stopped_improving(tiny_shapes, tmp_path, write_results):
    values = (1.0, 4.0, 4.0, 3.0, 9.0, 9.0)
    write_results(*values)
    stopped = tmp_path / "stopped"
    assert run_train(stopped, **STOPPED) == 0
    message = "after step 3 of 6: panoptic_seg/PQ has not improved in 2 evaluations"
    assert message in (stopped / "log.txt").read_text()
    expected = [(0, 1.0, 1.0), (1, 4.0, 4.0), (2, 4.0, 4.0), (3, 3.0, 4.0)]
    assert results(stopped) == expected
    assert read(stopped / FINAL)["iteration"] == 3 and (stopped / POINTER).read_text() == FINAL

    resume_after(2, stopped, tmp_path / "resumed", **STOPPED)
    assert results(tmp_path / "resumed") == expected
    final = read(stopped / FINAL)["model"]
    assert all(torch.equal(read(tmp_path / "resumed" / FINAL)["model"][n], t) for n, t in final.items())

    for _ in range(2):  # a run that has ended stays as it is
        assert run_train(stopped, "--resume", **STOPPED) == 0
        assert results(stopped) == expected and read(stopped / FINAL)["iteration"] == 3
    assert run_train(stopped, "--resume", **RUN) == 0
    assert [step for step, *_ in results(stopped)] == list(range(6)) and read(stopped / BEST)[
        "iteration"
    ] == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"SOLVER__EARLY_STOPPING": 2},
            "EARLY_STOPPING is 2, but TEST.BEST_METRIC is empty: name the metric",
        ),
        ({"TEST__BEST_METRIC": METRIC}, "BEST_METRIC is '.*', but TEST.EVAL_PERIOD is 0.* number of steps"),
        ({**RUN, "DATASETS__TEST": "()"}, "BEST_METRIC is '.*', but DATASETS.TEST is empty"),
    ],
)
def test_keys_that_would_do_nothing_are_an_error(tiny_shapes, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        resolve_config(tiny_config(OUTPUT_DIR=tmp_path, **changes))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_processes_end_early_together(server, tmp_path, strategy):
    """Without learning, the first evaluation is the best."""
    run = {**STOPPED, "SOLVER__BASE_LR": 0.0, "SOLVER__STRATEGY": strategy, "SOLVER__EMA_DECAY": 0.3}
    log = server.start(tmp_path, "--num-processes", "2", **run).finish(seconds=120)
    assert log.count("after step 2 of 6: panoptic_seg/PQ has not improved in 2 evaluations") >= 1
    final, best = read(tmp_path / FINAL), read(tmp_path / BEST)
    assert final["iteration"] == 2 and best["iteration"] == 0
    for name, tensor in best["model"].items():
        torch.testing.assert_close(final["model"][name], tensor, msg=name)
