"""benchmarks/study.py: rows change known keys, runs are not repeated, figures are summarized."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from tiny_runs import OPTIONS as TINY
from tiny_runs import restored_log

from mask2former.config import load_config
from mask2former.engine.metrics_log import read_metrics
from mask2former.tools.paper.tables import ABLATIONS
from mask2former.tools.train import main as train

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import study  # noqa: E402
from study import Run, Study, main, read_study  # noqa: E402

__all__ = ["restored_log"]
STUDIES = sorted(path.stem for path in (ROOT / "benchmarks" / "studies").glob("*.yaml"))
ABLATION = read_study("ablations")
ABLATED = {row["name"]: row for row in ABLATION.rows if row["name"] != "baseline"}


def flat(node, prefix=""):
    """Return a YAML mapping as `KEY.KEY: value`."""
    if not isinstance(node, dict):
        return {prefix.removesuffix("."): node}
    items = (flat(value, f"{prefix}{key}.").items() for key, value in node.items())
    return {key: value for pairs in items for key, value in pairs}


@pytest.mark.parametrize("name", sorted(ABLATED))
def test_a_row_of_the_ablation_changes_the_keys_of_its_config(name):
    table = ABLATED[name]["labels"]["paper's table"].split(", ")[-1]
    leaf = yaml.safe_load((ROOT / f"configs/ablations/table{table}/{name}_coco_panoptic.yaml").read_text())
    del leaf["_BASE_"]
    assert ABLATED[name]["options"] == flat(leaf)


@pytest.mark.parametrize("name", STUDIES)
def test_the_keys_of_a_study_are_known_and_its_rows_have_names_of_their_own(name):
    read = read_study(name)
    assert read.drawn.name == read.dataset
    names = [row["name"] for row in read.rows]
    assert len(set(names)) == len(names)
    for row in read.rows:
        options = {**read.options, **row.get("options", {})}
        load_config(read.config, [part for pair in options.items() for part in map(str, pair)])


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Make images and model tiny; return a function that starts the benchmark in a folder."""
    monkeypatch.setattr(study, "OPTIONS", TINY)
    monkeypatch.setattr(study, "IMAGES", {"train": 6, "val": 2})
    monkeypatch.setattr(study, "PAUSE", 0)
    monkeypatch.setenv("DETECTRON2_DATASETS", "")  # which the benchmark sets
    monkeypatch.setattr(study.signal, "signal", lambda *_: None)

    def run(*flags, name="ablations"):
        results = tmp_path / "results.json"
        code = main([name, *flags, "--folder", str(tmp_path), "--results", str(results)])
        return code, json.loads(results.read_text())

    return run


class Finished:
    """A process that has ended, or with the code None has not."""

    def __init__(self, code):
        self.code, self.terminated = code, False

    def poll(self):
        return self.code

    def terminate(self):
        self.terminated = True

    def wait(self):
        assert self.terminated


@pytest.fixture
def in_process(monkeypatch):
    """Train in this process; return the list of commands."""
    started = []

    def popen(argv, **_):
        started.append(argv)
        assert argv[:4] == [sys.executable, "-m", "mask2former", "train"]
        return Finished(train(argv[4:]))

    monkeypatch.setattr(study, "subprocess", SimpleNamespace(Popen=popen, STDOUT=None))
    return started


def test_runs_are_trained_and_evaluated_once(tiny, in_process, tmp_path):
    flags = ["--steps", "2", "--seeds", "1", "--only", "baseline", "zero_queries"]
    code, results = tiny(*flags)
    assert code == 0 and results["steps"] == 2
    assert [(row["name"], row["seed"]) for row in results["rows"]] == [
        ("baseline", [1]),
        ("zero_queries", [1]),
    ]
    for row in results["rows"]:
        assert row["seed"] == [1]
        folder = tmp_path / "ablations_2_steps" / f"{row['name']}_seed1"
        assert ("LEARNED_QUERIES: false" in (folder / "config.yaml").read_text()) == ("options" in row)
        records = read_metrics(folder / "metrics.json")
        assert records[-1]["iteration"] == 1
        for column, name in ABLATION.metrics.items():
            assert row[column] == [round(records[-1][name], 2)]
        assert row["MB"] == [round(max(record.get("memory_mb", 0) for record in records), 3)]
    assert tiny(*flags) == (0, results) and len(in_process) == 2


def test_an_interrupted_run_continues_from_its_checkpoint(tiny, in_process, tmp_path):
    """A run of two steps stands for one of four that was stopped after two."""
    tiny("--steps", "2", "--seeds", "1", "--only", "baseline")
    folder = tmp_path / "ablations_4_steps"
    shutil.copytree(tmp_path / "ablations_2_steps", folder)
    (folder / "baseline_seed1.json").unlink()
    tiny("--steps", "4", "--seeds", "1", "--only", "baseline")
    assert "steps 2 to 4" in (folder / "baseline_seed1" / "log.txt").read_text()


@pytest.fixture
def evaluating(monkeypatch, tmp_path):
    """Write a study of which the second row evaluates the first one's models; return its name."""
    rows = [
        {"name": "trained", "title": "trained"},
        {"name": "read", "title": "read", "evaluate": "trained", "options": {"TEST.DETECTIONS_PER_IMAGE": 0}},
    ]
    facts = {"dataset": "shapes", "config": ABLATION.config, "steps": 2, "seeds": 1, "rows": rows}
    metrics = {"PQ": "panoptic_seg/PQ", "AP": "segm/AP", "none": "no/such"}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump({**facts, "metrics": metrics}))
    monkeypatch.setattr(study, "STUDIES", tmp_path)
    return "two"


def test_a_row_can_evaluate_the_models_of_another(tiny, in_process, evaluating, capsys):
    code, results = tiny(name=evaluating)
    trained, read = results["rows"]
    assert code == 0 and len(in_process) == 2
    assert read["PQ"] == trained["PQ"] and read["AP"] == [0.0]
    assert "MB" in trained and "MB" not in read and "none" not in trained
    assert "| read | 1 | " in capsys.readouterr().out


def test_without_the_models_nothing_is_evaluated(tiny, in_process, evaluating):
    with pytest.raises(SystemExit, match="read_seed1 evaluates trained_seed1, which is not trained"):
        tiny("--only", "read", name=evaluating)
    assert not in_process


def test_a_failed_run_is_named_and_leaves_no_row(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "OPTIONS", {"MODEL.NO_SUCH_KEY": 1})
    with pytest.raises(SystemExit, match=r"(?s)baseline_seed1 ended with .*NO_SUCH_KEY"):
        tiny("--steps", "2", "--seeds", "1", "--only", "baseline")
    assert not list(tmp_path.rglob("*_seed1.json"))


def test_an_unknown_row_is_an_error_that_names_the_others(tiny, capsys):
    with pytest.raises(SystemExit):
        tiny("--only", "baselin")
    assert "no row baselin in ablations; it has baseline, cross_attention" in capsys.readouterr().err


@pytest.fixture
def processes(monkeypatch):
    """Replace processes: each ends at once, except the third; return the started runs and their processes."""
    started = []

    def start(_, run, *args):
        process = Finished(None if len(started) == 2 else 0)
        started.append(((run.row["name"], run.seed), process))
        return process

    def finish(read, run, code, folder):
        row = {"name": run.row["name"], "seed": run.seed, "commit": "c", "machine": "m", "MB": 2}
        (folder / f"{run.name}.json").write_text(json.dumps({**row, "PQ": run.seed, "AP": 1, "mIoU": 2}))

    monkeypatch.setattr(study, "start", start)
    monkeypatch.setattr(study, "finish", finish)
    return started


def test_an_interrupted_command_reports_what_is_done_and_continues(tiny, processes, monkeypatch):
    """All rows of a seed come before the next seed; what runs at the interruption is ended, and run again."""

    def interrupt(_):
        if len(processes) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(study.time, "sleep", interrupt)
    flags = ["--seeds", "2", "--only", "baseline", "fpn", "--jobs", "1"]
    code, results = tiny(*flags)
    assert code == 1 and [row["seed"] for row in results["rows"]] == [[1], [1]]
    assert [process.terminated for _, process in processes] == [False, False, True]
    code, results = tiny(*flags)
    assert code == 0 and [row["PQ"] for row in results["rows"]] == [[1, 2], [1, 2]]
    runs = [("baseline", 1), ("fpn", 1), ("baseline", 2), ("baseline", 2), ("fpn", 2)]
    assert [run for run, _ in processes] == runs


def test_so_many_runs_at_a_time_as_asked(tmp_path, monkeypatch):
    most = []
    running = set()

    class Process(Finished):
        def __init__(self, name):
            super().__init__(None)
            self.name, self.looks = name, 0
            running.add(name)
            most.append(len(running))

        def poll(self):
            self.looks += 1
            return 0 if self.looks == 3 else None

    monkeypatch.setattr(study, "PAUSE", 0)
    monkeypatch.setattr(study, "start", lambda _, run, *args: Process(run.name))
    monkeypatch.setattr(study, "finish", lambda _, run, *args: running.remove(run.name))
    runs = [Run({"name": "row"}, seed) for seed in range(1, 6)]
    study.train_all(Study("shapes", "", 1, 1, {}, []), runs, 1, tmp_path, jobs=2)
    assert max(most) == 2 and len(most) == 5 and not running


def test_the_kept_figures_are_of_these_rows():
    """Each has a figure for each of its seeds."""
    kept = json.loads(ABLATIONS.read_text(encoding="utf-8"))
    assert kept["config"] == ABLATION.config and kept["steps"] == ABLATION.steps
    facts = [
        {key: row[key] for key in ("name", "title", "labels", "options") if key in row}
        for row in kept["rows"]
    ]
    assert facts == ABLATION.rows
    for row in kept["rows"]:
        assert all(len(row[metric]) == len(set(row["seed"])) == ABLATION.seeds for metric in ABLATION.metrics)
