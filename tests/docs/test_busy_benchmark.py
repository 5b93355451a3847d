"""benchmarks/busy.py: its table and aim, and the error of a run that fails."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import busy


def test_medians_of_all_runs_are_compared_with_one_alone(monkeypatch):
    found = iter([[0.5], [0.2], [0.3, 0.5], [0.7], [0.4], [0.7, 0.9]])
    monkeypatch.setattr(busy, "step_seconds", lambda side, steps, cgroup: next(found))
    lines = busy.report(rounds=2, steps=1, cgroup=None).splitlines()
    assert lines[2:5] == [
        "| alone, always spinning | 0.600 s | 2.00x | 0.50 0.70 |",
        "| alone | 0.300 s | 1.00x | 0.20 0.40 |",
        "| two at once | 0.600 s | 2.00x | 0.30 0.50 0.70 0.90 |",
    ]
    assert "is 0.780 s" in lines[-1]


def test_a_run_that_fails_names_its_command(monkeypatch):
    monkeypatch.setattr(busy.sys, "executable", "false")
    with pytest.raises(
        RuntimeError, match=r"a run failed; try false -m mask2former train .* SOLVER.MAX_ITER 3"
    ):
        busy.step_seconds(busy.SIDES["two at once"], 3, None)
