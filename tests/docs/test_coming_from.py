"""docs/coming_from.md: every line of its tables is run, except that commands are only parsed."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_checkpoint import save_tiny_checkpoint, tiny_config

from mask2former import Predictor, load_config
from mask2former.result import Result
from mask2former.tools.convert import main as convert
from mask2former.weights.model_zoo import published_models

PAGE = (Path(__file__).parents[2] / "docs" / "coming_from.md").read_text(encoding="utf-8")
TABLES = {
    title: re.findall(r"^\| (`.*) \| (`.*) \|$", text, re.MULTILINE)
    for title, text in re.findall(r"^## From (\w+)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
}
COMMANDS = ("mask2former ", "python ", "bash ")


def spans(cell):
    return re.findall(r"`([^`]+)`", cell)


def parse(command):
    _, name, *arguments = shlex.split(command)
    module = importlib.import_module(f"mask2former.tools.{name}")
    if arguments:
        args = module.parse_arguments(arguments)
        if args.config_file:
            load_config(args.config_file, args.opts)


@pytest.fixture
def names(tmp_path, monkeypatch):
    """Return the names that the lines use, in a folder with the files that they use."""
    monkeypatch.chdir(tmp_path)
    save_tiny_checkpoint(tmp_path / "model_final.pth")
    assert convert(["model_final.pth", "my_folder"]) == 0
    (tmp_path / "my.yaml").write_text(tiny_config().dump())
    Image.effect_noise((64, 48), 99).convert("RGB").save("img.jpg")
    monkeypatch.setattr(Predictor, "from_zoo", {name: Predictor for name in published_models()}.__getitem__)
    monkeypatch.setattr(Result, "show", Result.draw)
    found = {"cv2": cv2, "image": np.asarray(Image.open("img.jpg"))}
    exec(spans(PAGE)[0], found)
    found["tensor"] = torch.from_numpy(found["image"].copy()).movedim(2, 0)
    return found


def test_there_is_a_table_for_each_library():
    assert list(TABLES) == ["Detectron2", "transformers", "mmdetection"]
    assert sum(map(len, TABLES.values())) == len(re.findall(r"^\| `", PAGE, re.MULTILINE))


@pytest.mark.parametrize("title", TABLES)
def test_every_line_runs(title, names):
    for there, here in TABLES[title]:
        for code in spans(there):
            if not code.startswith(COMMANDS):
                ast.parse(code)
        for code in spans(here):
            if code.startswith("mask2former "):
                parse(code)
            else:
                exec(compile(code, here, "exec"), names)
