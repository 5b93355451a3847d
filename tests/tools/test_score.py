"""The command `mask2former score`, and its former names."""

import importlib
import json

import pytest
from score_command import score, score_error
from synthetic_evaluation import SyntheticDataset

from mask2former.tools import score as module
from mask2former.tools.score import METRICS, main
from mask2former.utils.image_io import MAX_MEGAPIXELS, set_pixel_limit

FORMER_NAMES = {
    "panoptic": "panoptic_quality",
    "instances": "coco_ap",
    "semantic": "mean_iou",
    "cityscapes-instances": "cityscapes_ap",
    "cityscapes-semantic": "cityscapes_iou",
}


def panoptic_arguments(dataset):
    """Return the arguments that compare the ground truth with itself."""
    files = ["--gt-json", dataset.json, "--pred-json", dataset.json]
    return [*map(str, [*files, "--gt-dir", dataset.pngs, "--pred-dir", dataset.pngs])]


def test_panoptic_quality_as_table_and_json(tmp_path, capsys):
    arguments = panoptic_arguments(SyntheticDataset(tmp_path))
    assert main(["panoptic", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["PQ", "SQ", "RQ", "n"] and lines[2].split()[:3] == ["100.000"] * 3
    assert ["triangle-like", "100.000", "100.000", "100.000"] in [line.split() for line in lines]
    assert score("panoptic", *arguments)["PQ"] == 100


def test_an_error_of_several_lines_is_printed_in_one(monkeypatch):
    def fail(*args, **options):
        raise ValueError("first\n  second")

    monkeypatch.setattr(module, "mean_iou_of_folders", fail)
    arguments = "--gt-dir", "x", "--pred-dir", "y", "--num-classes", 3
    assert score_error("semantic", *arguments) == r"error: first\n  second"


def test_a_map_above_the_limit_of_pixels_is_an_error(tmp_path):
    arguments = panoptic_arguments(SyntheticDataset(tmp_path))
    error = score_error("panoptic", *arguments, "--max-megapixels", "1e-6")
    assert "megapixels; the limit is 1e-06 (INPUT.MAX_MEGAPIXELS or --max-megapixels)" in error
    set_pixel_limit(MAX_MEGAPIXELS)


@pytest.mark.parametrize(
    ("metric", "flags", "message"),
    [
        ("semantic", ["--label-ids", "0-3000000000"], "'0-3000000000' is not like 1-150 or 7,8,11-13"),
        ("semantic", ["--label-ids", "0-999999"], "'0-999999' has more than 10000 labels"),
        ("semantic", ["--label-ids", "5-1"], "'5-1' has a range that ends before it begins"),
        (
            "semantic",
            ["--num-classes", "1000000000"],
            "from 0 to 10000, not '1000000000'",
        ),
        ("semantic", ["--num-classes", "9" * 5000], "expected a whole number from 0 to 10000, not '99"),
        ("panoptic", ["--workers", "100000000"], "expected a whole number from 1 to 1024, not '100000000'"),
        ("panoptic", ["--workers", "0"], "expected a whole number from 1 to 1024, not '0'"),
    ],
)
def test_numbers_that_no_machine_has_are_refused(capsys, metric, flags, message):
    with pytest.raises(SystemExit) as error:
        main([metric, *flags])
    assert error.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert message in line and len(line) < 300


def test_help_lists_the_metrics(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    words = capsys.readouterr().out.split()
    assert words[:3] == ["usage:", "mask2former", "score"] and METRICS.keys() <= set(words)


@pytest.mark.parametrize("name", FORMER_NAMES)
def test_former_names_run_the_command(name, tmp_path, capsys):
    former = importlib.import_module(f"mask2former.evaluation.{FORMER_NAMES[name]}")
    if name == "panoptic":
        assert former.main([*panoptic_arguments(SyntheticDataset(tmp_path)), "--json"]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["PQ"] == 100
        return
    with pytest.raises(SystemExit):
        former.main(["--help"])
    captured = capsys.readouterr()
    assert f"usage: mask2former score {name} " in captured.out
    new = f"python -m mask2former.evaluation.{FORMER_NAMES[name]} is now `mask2former score {name}`;"
    assert captured.err.startswith(new)
    assert all(hasattr(former, exported) for exported in former.__all__)
