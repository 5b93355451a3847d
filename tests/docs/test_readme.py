"""README.md: its image, Python block, commands and figures, each against its source."""

import importlib
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_checkpoint import save_tiny_checkpoint

from mask2former import Predictor
from mask2former.config import load_config
from mask2former.tools import cli
from mask2former.utils.image_io import read_image
from mask2former.weights.model_zoo import published_models

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = [
    shlex.split(line, comments=True)
    for language, block in BLOCKS
    if not language
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("mask2former ")
]
PARSED = {"train", "evaluate", "predict"}


def test_the_image_is_drawn_by_the_script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    drawn = importlib.import_module("draw_readme_image").photo_and_overlay()
    shown = read_image(ROOT / "docs" / "images" / "coffee_segmented.jpg")
    assert drawn.shape == shown.shape
    assert np.abs(drawn.astype(int) - shown).mean() < 4  # JPEG, and another release's font


def test_the_python_block_runs(tmp_path, monkeypatch):
    [code] = [block for language, block in BLOCKS if language == "python"]
    name = re.search(r'from_zoo\("(.*?)"\)', code)[1]
    assert name in published_models()
    predictor = Predictor(save_tiny_checkpoint(tmp_path / "model.pth"))
    monkeypatch.setattr(Predictor, "from_zoo", {name: predictor}.__getitem__)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 48)).save("img.jpg")
    variables = {"__name__": "readme"}
    exec(compile(code, "README.md", "exec"), variables)
    assert Path("overlay.png").is_file()
    result = variables["result"]
    named = {"result": result, "segment": result.panoptic.segments[0], "i": 0, "k": 0}
    values = {code: eval(code, named) for code in re.findall(r"`(result\.[^`]+)`", PAGE)}
    assert set(named["segment"]) == {"id", "category_id", "isthing"}
    for code in ('result.panoptic.ids == segment["id"]', "result.instances.pred_masks[i]", "result.semantic"):
        assert values[code].shape == (48, 64)
    assert predictor(np.zeros((48, 64, 3), np.uint8), channels="BGR").panoptic.ids.shape == (48, 64)
    assert 'predictor(array, channels="BGR")' in PAGE


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_parse(words):
    command, arguments = words[1], words[2:]
    assert command in cli.COMMANDS
    if command in PARSED:
        args = importlib.import_module(f"mask2former.tools.{command}").parse_arguments(arguments)
        if args.config_file:
            load_config(args.config_file, args.opts)
        if command == "predict":
            assert args.model in published_models()


def test_commands_in_the_text_exist():
    named = set(re.findall(r"`mask2former ([\w-]+)", PAGE)) | {words[1] for words in COMMANDS}
    assert {"train", "evaluate", "predict", "zoo", "doctor", "config"} <= named <= set(cli.COMMANDS)


def test_the_zoo_table_quotes_the_published_figures():
    rows = re.findall(r"^\| `([\w-]+)` \|([^|]*)\|([^|]*)\|([^|]*)\|([^|]*)\|$", PAGE, re.MULTILINE)
    assert len(rows) == 5
    for name, _, *cells in rows:
        figures = published_models()[name].figures
        assert [cell.strip() for cell in cells] == [str(figures.get(key, "")) for key in ("PQ", "AP", "mIoU")]
    assert f"lists all {len(published_models())}" in PAGE


def test_the_speed_table_quotes_the_benchmarks():
    """Seconds and gigabytes, rounded as in the table, stand on the page of benchmarks."""
    benchmarks = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (image|512x512) \| (.*) \|$", benchmarks, re.MULTILINE))
    speed = PAGE[PAGE.index("## Speed") : PAGE.index("## Where to look")]
    lines = re.findall(r"^\| (?:Swin|R50).*$", speed, re.MULTILINE)
    for row, line in zip(("image", "512x512"), lines, strict=True):
        seconds = {f"{float(value):.1f} s" for value in re.findall(r"([\d.]+) s", rows[row])}
        memory = {f"{float(value) / 1000:.1f} GB" for value in re.findall(r"(\d+) MB", rows[row])}
        assert set(re.findall(r"[\d.]+ (?:s|GB)\b", line)) <= seconds | memory
    ours, official = re.findall(
        r"^\| AP of the same, from .* \| (.* s) \| (.* s) \| .* s \|", benchmarks, re.MULTILINE
    )[0]
    assert f"takes {ours} of one core, in pycocotools {official}" in speed
