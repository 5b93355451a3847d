"""The command `mask2former export`, and `--export` of training."""

import sys

import pytest
import torch
from tiny_checkpoint import save_tiny_checkpoint
from tiny_runs import CONFIG, run_train

from mask2former.export.runtimes import open_exported
from mask2former.tools import train
from mask2former.tools.export import main, parse_arguments


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("run") / "model_final.pth")


def test_a_checkpoint_is_written_beside_itself_and_reported(checkpoint, capsys):
    assert main([str(checkpoint), "--format", "torch"]) == 0
    path = checkpoint.with_suffix(".pt2")
    out = capsys.readouterr().out
    assert "1 x 3 x 256 x 352  0.0e+00" in out
    assert f"{path}: {path.stat().st_size / 1e6:.1f} MB" in out
    exported = open_exported(path)
    assert exported.metadata.class_names == ["circle", "square", "grass", "sand"]
    assert exported.logits(torch.zeros(1, 3, 64, 96))[1].shape == (1, 10, 16, 24)
    assert main([str(checkpoint), "--format", "torch"]) == 1
    assert "exists; --overwrite replaces it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output", "model.pt2"], "--output model.pt2 must end with .onnx for --format onnx"),
        (["--output", "nowhere/model.onnx"], "--output nowhere/model.onnx: there is no folder nowhere"),
    ],
)
def test_a_wrong_output_is_an_error_of_one_line(checkpoint, flags, message, capsys):
    assert main([str(checkpoint), "--format", "onnx", *flags]) == 1
    assert capsys.readouterr().err == f"error: {message}\n"


@pytest.mark.parametrize("names", [[], ["model.pth", "--model", "coco-panoptic-r50"]])
def test_one_model_must_be_named(names, capsys):
    with pytest.raises(SystemExit):
        parse_arguments([*names, "--format", "onnx"])
    assert "give either CHECKPOINT or --model NAME" in capsys.readouterr().err


def test_a_missing_checkpoint_is_an_error(tmp_path, capsys):
    assert main([str(tmp_path / "model.pth"), "--format", "torch"]) == 1
    assert "model.pth" in capsys.readouterr().err


def test_a_missing_package_shows_before_the_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not installed
    folder = tmp_path / "run"
    assert train.main(["--config-file", str(CONFIG), "--export", "onnx", "OUTPUT_DIR", str(folder)]) == 1
    assert "pip install 'mask2former[export]'" in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.parametrize("other", ["--eval-only", "--host=detectron2"])
def test_export_is_for_training(other, capsys):
    assert train.main(["--config-file", str(CONFIG), "--export", "torch", other]) == 1
    assert f"--export is not for {other.replace('=', ' ')}" in capsys.readouterr().err


@pytest.mark.slow
def test_a_training_ends_with_an_exported_model(tiny_shapes, tmp_path):
    assert run_train(tmp_path, "--export", "torch", SOLVER__MAX_ITER=1) == 0
    exported = open_exported(tmp_path / "model_final.pt2")
    assert exported.metadata.class_names[:2] == ["circle", "square"]
    assert (tmp_path / "model_final.pth").exists()
