"""The commands and keys that docs/evaluation.md names are there."""

import importlib
import re
from pathlib import Path

import pytest

from mask2former.config.defaults import DEFAULTS

PAGE = (Path(__file__).parents[2] / "docs/evaluation.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"python -m (mask2former\.evaluation\.\w+)((?:.*\\\n)*.*)", PAGE)


@pytest.mark.parametrize(("module", "arguments"), COMMANDS)
def test_flags(module: str, arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = set(re.findall(r"--[a-z-]+", arguments))
    with pytest.raises(SystemExit):
        importlib.import_module(module).main(["--help"])
    assert flags and flags <= set(re.findall(r"--[a-z-]+", capsys.readouterr().out))


def test_every_command_and_key() -> None:
    assert len({module for module, _ in COMMANDS}) == 5
    keys = set(re.findall(r"`((?:TEST|DATASETS|MODEL)\.[A-Z_.]+)", PAGE))
    assert keys <= {*DEFAULTS, *(key.rsplit(".", 1)[0] for key in DEFAULTS)} and "TEST.BOUNDARY" in keys
