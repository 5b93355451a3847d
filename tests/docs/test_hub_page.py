"""docs/hub.md: its commands and code run, on small models in the place of the real ones."""

import re
import shlex
from pathlib import Path

import pytest
from hub_folders import save_small_checkpoint
from PIL import Image

from mask2former.config.defaults import DEFAULTS
from mask2former.tools import convert, train

PAGE = (Path(__file__).parents[2] / "docs/hub.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [
    shlex.split(line) for kind, text in BLOCKS if not kind for line in text.replace("\\\n", " ").splitlines()
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with what the page names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "output").mkdir()
    path = save_small_checkpoint("output/model_final.pth", "swin")
    assert convert.main([str(path), "mask2former-swin-tiny-coco-panoptic"]) == 0
    Image.effect_noise((64, 48), 99).convert("RGB").save("img.jpg")
    return tmp_path


def test_every_command_runs_or_parses(place):
    for _, name, *arguments in COMMANDS:
        if name == "train":
            assert train.parse_arguments(arguments).opts == [
                "MODEL.WEIGHTS",
                "mask2former-swin-tiny-coco-panoptic",
            ]
        else:
            assert name == "convert"
            if arguments[0] == "my_folder":
                assert convert.main(["output/model_final.pth", "my_folder", "--overwrite"]) == 0
            assert convert.main([*arguments, "--overwrite"]) == 0
    assert len(COMMANDS) == 4


def test_the_code_runs(place):
    code = next(text for kind, text in BLOCKS if kind == "python")
    found = {}
    exec(code, found)
    assert found["result"].panoptic.ids.shape == (48, 64)


def test_the_pipeline_runs_with_the_processor_of_the_folder(place):
    transformers = pytest.importorskip("transformers")
    assert convert.main(["output/model_final.pth", "my_folder"]) == 0
    found = {"transformers": transformers}
    exec([text for kind, text in BLOCKS if kind == "python"][1], found)
    assert found["segmenter"].model.config.id2label[0] == "circle"


def test_every_key_exists():
    keys = set(re.findall(r"\b(?:MODEL|INPUT)\.[A-Z_.]+[A-Z]", PAGE))
    assert len(keys) > 3
    assert all(key in DEFAULTS or any(name.startswith(f"{key}.") for name in DEFAULTS) for key in keys)
