"""docs/export.md: its code and commands run, on a small file in the place of a real one."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_checkpoint import NAMES
from toy_exports import write_toy

from mask2former.config.defaults import DEFAULTS
from mask2former.predictor import Predictor
from mask2former.tools import evaluate, export, predict, train
from mask2former.utils.image_io import read_image

PAGE = (Path(__file__).parents[2] / "docs/export.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
CODE = [text for kind, text in BLOCKS if kind == "python"]


@pytest.fixture
def place(elsewhere, tmp_path):
    """A folder with what the page names."""
    write_toy(tmp_path, ".onnx").rename("model.onnx")
    blots = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8))
    blots.resize((90, 70), Image.Resampling.BICUBIC).save("img.jpg", quality=100)


def test_an_exported_file_predicts(place):
    found = {}
    exec(CODE[0], found)
    assert found["result"].panoptic.ids.shape == (70, 90)


def test_the_example_without_this_project_agrees_with_it(place, capsys):
    assert "mask2former import" not in CODE[1]
    found = {}
    exec(CODE[1], found)
    assert set(capsys.readouterr().out.strip("{}\n").replace("'", "").split(", ")) <= set(NAMES)
    predictor = Predictor("model.onnx")
    (expected,) = predictor.model.predict_images([predictor.mapper.inputs(read_image("img.jpg"))])
    torch.testing.assert_close(torch.from_numpy(found["mask_logits"][0]), expected.mask_logits)
    torch.testing.assert_close(
        torch.from_numpy(found["probabilities"]), expected.probabilities, rtol=0, atol=1e-6
    )
    labels = predictor("img.jpg").semantic
    rows, columns = (
        np.linspace(0, side - 1, count).round().astype(int)
        for side, count in zip(labels.shape, found["labels"].shape, strict=True)
    )
    assert (labels[np.ix_(rows, columns)] == found["labels"]).mean() > 0.8


def test_the_commands_run_or_parse(place):
    commands = [
        shlex.split(line, comments=True) for kind, text in BLOCKS if not kind for line in text.splitlines()
    ]
    for _, name, *arguments in commands:
        if name == "export":
            parsed = export.parse_arguments(arguments)
            assert parsed.checkpoint or parsed.model or parsed.config_file
        elif name == "predict":
            assert predict.main(arguments) == 0
        elif name == "train":
            assert train.parse_arguments(arguments).export == "onnx"
        else:
            assert name == "evaluate" and evaluate.parse_arguments(arguments).opts[0] == "MODEL.WEIGHTS"


def test_every_key_exists():
    keys = set(re.findall(r"\b(?:MODEL|TEST)\.[A-Z_.]+[A-Z]", PAGE))
    assert len(keys) > 3
    assert all(key in DEFAULTS or any(name.startswith(f"{key}.") for name in DEFAULTS) for key in keys)
