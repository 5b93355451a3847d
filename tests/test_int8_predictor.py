"""Prediction in int8 by `Predictor` and the command, and what to type where it cannot be had."""

import numpy as np
import pytest
import torch
from tiny_checkpoint import save_tiny_checkpoint, tiny_config

from mask2former.export.exported_model import exported_model
from mask2former.modeling.int8 import Int8Conv2d
from mask2former.predictor import Predictor
from mask2former.tools import predict
from mask2former.utils.image_io import write_image
from mask2former.weights.read import Checkpoint

needs_vnni = pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="int8 needs AVX512 VNNI")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model") / "model.pth")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for seed in range(2):
        coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        write_image(folder / f"{seed}.png", coarse.repeat(12, 0).repeat(12, 1))
    return folder


@needs_vnni
def test_the_predictor_segments_in_int8_nearly_as_in_float32(checkpoint, folder):
    exact, int8 = Predictor(checkpoint), Predictor(checkpoint, precision="int8", calibrate=folder)
    assert isinstance(int8.model.backbone.stem.conv1, Int8Conv2d)
    results = [predictor(folder / "0.png").semantic for predictor in (exact, int8)]
    assert (results[0] == results[1]).mean() > 0.9


@needs_vnni
def test_the_command_predicts_in_int8(checkpoint, folder, tmp_path, capsys):
    flags = ["--precision", "int8", "--calibrate", str(folder), "--output", str(tmp_path / "out.png")]
    weights = ["--opts", "MODEL.WEIGHTS", str(checkpoint)]
    assert predict.main(["--input", str(folder / "0.png"), *flags, *weights]) == 0
    assert (tmp_path / "out.png").stat().st_size


@pytest.mark.parametrize("precision, calibrate", [("int8", None), ("bf16", "images")])
def test_int8_and_images_belong_together(checkpoint, precision, calibrate):
    with pytest.raises(ValueError, match="int8, and nothing else, needs --calibrate DIR"):
        Predictor(checkpoint, precision=precision, calibrate=calibrate)


def test_a_folder_without_images_is_an_error(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="no image in it"):
        Predictor(checkpoint, precision="int8", calibrate=tmp_path)


def test_exported_files_are_quantized_when_they_are_exported(folder):
    with pytest.raises(ValueError, match="export with --int8 --calibrate DIR"):
        exported_model(tiny_config(), Checkpoint("model.onnx", {}, None, None), "int8", folder)
