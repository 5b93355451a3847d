"""`--precision` of the command `mask2former evaluate`."""

import json
from typing import NamedTuple

import pytest
import torch
from tiny_runs import CONFIG, restored_catalogs, save_ground_finder, tiny_options, tiny_shapes

from mask2former.tools import evaluate

__all__ = ["restored_catalogs", "tiny_shapes"]

pytestmark = pytest.mark.usefixtures("restored_catalogs")
needs_vnni = pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="int8 needs AVX512 VNNI")
INT8 = pytest.param("int8", marks=needs_vnni)
TILES = {"TEST__TILE__SIZE": 64}
VIEWS = {  # averages of several views of an image
    "MODEL__MASK_FORMER__TEST__PANOPTIC_ON": False,
    "MODEL__MASK_FORMER__TEST__INSTANCE_ON": False,
    "TEST__AUG__ENABLED": True,
    "TEST__AUG__MIN_SIZES": (64, 96),
}


class Measured(NamedTuple):
    metrics: dict[str, float]
    scores: list[float]


@pytest.fixture(scope="module")
def checkpoint(tiny_shapes, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.pth"
    save_ground_finder(path)
    return path


@pytest.fixture
def run_evaluate(checkpoint, tmp_path, tiny_shapes):
    """A function that runs the command in a precision and returns its exit code."""

    def run(*flags, folder=tmp_path, **changes):
        if "int8" in flags and "--calibrate" not in flags:
            flags = (*flags, "--calibrate", str(tiny_shapes / "shapes/train"))
        options = tiny_options(OUTPUT_DIR=folder, MODEL__WEIGHTS=checkpoint, **changes)
        return evaluate.main(["--config-file", str(CONFIG), *flags, *options])

    return run


def metrics_in(text):
    """Return the metrics of printed tables: names, a line, values."""
    rows = [line.split() for line in text.splitlines()]
    tables = [pair for pair in zip(rows, rows[2:], strict=False) if pair[0][0] in ("PQ", "AP", "mIoU")]
    return {name: float(value) for table in tables for name, value in zip(*table, strict=True)}


@pytest.mark.parametrize("precision", ["bf16", INT8])
def test_metrics_of_a_lower_precision_are_nearly_those_of_float32(run_evaluate, tmp_path, capsys, precision):
    found = []
    for name in ("fp32", precision):
        assert run_evaluate("--precision", name, folder=tmp_path / name) == 0
        results = json.loads((tmp_path / name / "inference/coco_instances_results.json").read_text())
        scores = sorted(result["score"] for result in results)
        found.append(Measured(metrics_in(capsys.readouterr().out), scores))
    exact, lower = found
    assert exact.metrics["PQ"] > 1 and exact.metrics["mIoU"] > 1
    assert lower.metrics == pytest.approx(exact.metrics, abs=1, nan_ok=True)
    assert lower.scores != exact.scores
    assert lower.scores == pytest.approx(exact.scores, abs=0.01)


@needs_vnni
@pytest.mark.parametrize("changes", [TILES, VIEWS], ids=["tiles", "views"])
def test_int8_is_calibrated_on_whole_images(run_evaluate, capsys, changes):
    assert run_evaluate("--precision", "int8", **changes) == 0
    assert "calibrated with 6 images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--calibrate", "images"], "int8, and nothing else, needs --calibrate DIR"),
        (["--precision", "int8", "--calibrate", "no/folder"], "--calibrate no/folder: no such folder"),
        (["--precision", "bf16", "--host", "detectron2"], "--precision and --calibrate are not for --host"),
    ],
)
def test_what_cannot_be_had_is_an_error_of_one_line(run_evaluate, capsys, flags, message):
    assert run_evaluate(*flags) == 1
    *_, error = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("error: ") and message in error
