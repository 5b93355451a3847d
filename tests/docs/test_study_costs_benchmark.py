"""benchmarks/study_costs.py: rows take turns, and the first round does not count."""

import json
import sys
from pathlib import Path

import pytest
from tiny_runs import OPTIONS as TINY

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import study
import study_costs


def test_rows_take_turns_in_an_order_that_rotates():
    calls = []
    steps = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    seconds = study_costs.measure_in_rotation(steps, rounds=2)
    assert "".join(calls) == "abc" + "bca" + "cab"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2, "c": 2}


def test_the_time_of_each_row_is_printed_beside_that_of_the_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study_costs, "OPTIONS", TINY)
    monkeypatch.setenv("DETECTRON2_DATASETS", "")  # which the benchmark sets
    read = study_costs.read_study("small_objects")
    drawn = read.drawn
    monkeypatch.setattr(study_costs.Study, "drawn", drawn._replace(splits={"train": 4, "val": 1}))
    study_costs.main(
        ["small_objects", "--rounds", "1", "--only", "published", "points", "--folder", str(tmp_path)]
    )
    lines = capsys.readouterr().out.splitlines()
    assert "| published |" in lines[-2] and lines[-2].endswith("| 1.00 | 1.00 |")
    assert lines[-1].startswith("| points | ")


def test_times_are_added_to_the_results_of_the_study(tmp_path):
    file = tmp_path / "results.json"
    rows = [{"name": name, "seed": [1, 2], "PQ": [1, 2]} for name in ("a", "b", "evaluated")]
    file.write_text(json.dumps({"columns": ["PQ"], "rows": rows}))
    for _ in range(2):  # a second measurement replaces the first
        study_costs.add_to_results(file, {"a": [2.0, 4.0, 3.0], "b": [6.0]}, base="a")
    results = json.loads(file.read_text())
    assert results["columns"] == ["PQ", "s/step", "time"]
    a, b, evaluated = results["rows"]
    assert (a["s/step"], a["time"], b["s/step"], b["time"]) == ([3.0], [1.0], [6.0], [2.0])
    assert evaluated == rows[2]


def test_results_that_are_collected_again_keep_the_times():
    earlier = {
        "columns": ["PQ", "s/step", "time"],
        "rows": [{"name": "a", "PQ": [1], "s/step": [3.0], "time": [1.0]}],
    }
    rows = [{"name": "a", "PQ": [1, 2]}, {"name": "b", "PQ": [5]}]
    again = study.with_costs({"columns": ["PQ"], "rows": rows}, earlier)
    assert again["columns"] == ["PQ", "s/step", "time"]
    assert again["rows"] == [{"name": "a", "PQ": [1, 2], "s/step": [3.0], "time": [1.0]}, rows[1]]


@pytest.mark.parametrize(
    ("row", "message"), [("fin", "no row fin in small_objects"), ("tiles", "tiles: no row that trains")]
)
def test_rows_that_cannot_be_measured_are_an_error(row, message, tmp_path, monkeypatch, capsys):
    drawn = study_costs.read_study("small_objects").drawn
    monkeypatch.setattr(study_costs.Study, "drawn", drawn._replace(splits={"val": 1}))
    monkeypatch.setenv("DETECTRON2_DATASETS", "")
    with pytest.raises(SystemExit):
        study_costs.main(["small_objects", "--only", row, "--folder", str(tmp_path)])
    assert message in capsys.readouterr().err
