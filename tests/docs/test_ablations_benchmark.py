"""benchmarks/ablations.py: variants are rows of the paper, runs are not repeated, figures are summarized."""

import json
import shutil
import sys
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace

import pytest
import yaml
from tiny_runs import OPTIONS as TINY
from tiny_runs import restored_log

from mask2former.engine.metrics_log import read_metrics
from mask2former.tools.paper.tables import ABLATIONS
from mask2former.tools.train import main as train

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import ablations  # noqa: E402
from ablations import METRICS, VARIANTS, Variant, main  # noqa: E402

__all__ = ["restored_log"]
ABLATED = sorted(VARIANTS.keys() - {"baseline"})


def flat(node, prefix=""):
    """Return a YAML mapping as `KEY.KEY: value`."""
    if not isinstance(node, dict):
        return {prefix.removesuffix("."): node}
    items = (flat(value, f"{prefix}{key}.").items() for key, value in node.items())
    return {key: value for pairs in items for key, value in pairs}


@pytest.mark.parametrize("name", ABLATED)
def test_a_variant_changes_the_keys_of_its_config(name):
    table = VARIANTS[name].paper.split(", ")[-1]
    leaf = yaml.safe_load((ROOT / f"configs/ablations/table{table}/{name}_coco_panoptic.yaml").read_text())
    del leaf["_BASE_"]
    assert VARIANTS[name].options == flat(leaf)


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Make images and model tiny; return a function that starts the benchmark in a folder."""
    monkeypatch.setattr(ablations, "OPTIONS", TINY)
    monkeypatch.setattr(ablations, "IMAGES", {"train": 6, "val": 2})
    monkeypatch.setenv("DETECTRON2_DATASETS", "")  # which the benchmark sets
    monkeypatch.setattr(ablations.signal, "signal", lambda *_: None)

    def start(*flags):
        results = tmp_path / "results.json"
        code = main([*flags, "--folder", str(tmp_path), "--results", str(results)])
        return code, json.loads(results.read_text())

    return start


@pytest.fixture
def in_process(monkeypatch):
    """Train in this process; return the list of commands."""
    started = []

    def run(argv, **_):
        started.append(argv)
        assert argv[:4] == [sys.executable, "-m", "mask2former", "train"]
        return CompletedProcess(argv, train(argv[4:]), stderr="")

    monkeypatch.setattr(ablations, "subprocess", SimpleNamespace(run=run))
    return started


def test_runs_are_trained_and_evaluated_once(tiny, in_process, tmp_path):
    flags = ["--steps", "2", "--seeds", "1", "--only", "baseline", "zero_queries"]
    code, results = tiny(*flags)
    assert code == 0 and results["steps"] == 2
    assert [(row["name"], row["seed"]) for row in results["variants"]] == [
        ("baseline", [1]),
        ("zero_queries", [1]),
    ]
    for row in results["variants"]:
        folder = tmp_path / "2_steps" / f"{row['name']}_seed1"
        assert ("LEARNED_QUERIES: false" in (folder / "config.yaml").read_text()) == bool(row["options"])
        evaluated = read_metrics(folder / "metrics.json")[-1]
        assert evaluated["iteration"] == 1
        assert {key: row[key] for key in METRICS} == {
            key: [round(evaluated[name], 2)] for key, name in METRICS.items()
        }
    assert tiny(*flags) == (0, results) and len(in_process) == 2


def test_an_interrupted_run_continues_from_its_checkpoint(tiny, in_process, tmp_path):
    """A run of two steps stands for one of four that was stopped after two."""
    tiny("--steps", "2", "--seeds", "1", "--only", "baseline")
    folder = tmp_path / "4_steps"
    shutil.copytree(tmp_path / "2_steps", folder)
    (folder / "baseline_seed1.json").unlink()
    tiny("--steps", "4", "--seeds", "1", "--only", "baseline")
    assert "steps 2 to 4" in (folder / "baseline_seed1" / "log.txt").read_text()


def test_a_failed_run_is_named_and_leaves_no_row(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(ablations, "OPTIONS", {"MODEL.NO_SUCH_KEY": 1})
    with pytest.raises(SystemExit, match=r"(?s)baseline_seed1 ended with .*NO_SUCH_KEY"):
        tiny("--steps", "2", "--seeds", "1", "--only", "baseline")
    assert not list(tmp_path.rglob("*_seed1.json"))


def test_an_interrupted_command_reports_what_is_done_and_continues(tiny, monkeypatch):
    """All variants of a seed come before the next seed."""
    started = []

    def run(name, seed, steps, output):
        started.append((name, seed))
        if len(started) == 3:
            raise KeyboardInterrupt
        return {"variant": name, "seed": seed, "PQ": seed, "AP": 1, "mIoU": 2, "commit": "c", "machine": "m"}

    monkeypatch.setattr(ablations, "run", run)
    flags = ["--seeds", "2", "--only", "baseline", "fpn"]
    code, results = tiny(*flags)
    assert code == 1 and [row["seed"] for row in results["variants"]] == [[1], [1]]
    code, results = tiny(*flags)
    assert code == 0 and [row["PQ"] for row in results["variants"]] == [[1, 2], [1, 2]]
    assert started == [("baseline", 1), ("fpn", 1), ("baseline", 2), ("baseline", 2), ("fpn", 2)]


def test_the_kept_figures_are_of_these_variants():
    """Each has a figure for each of its seeds."""
    kept = json.loads(ABLATIONS.read_text(encoding="utf-8"))
    named = {row["name"]: Variant(row["title"], row["paper"], row["options"]) for row in kept["variants"]}
    assert named == VARIANTS and kept["config"] == ablations.CONFIG
    for row in kept["variants"]:
        assert all(len(row[metric]) == len(set(row["seed"])) for metric in METRICS)
