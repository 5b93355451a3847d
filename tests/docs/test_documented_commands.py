"""The commands and keys in docs/evaluation.md exist."""

import re
import shlex
from pathlib import Path

import pytest

from mask2former.config.defaults import DEFAULTS
from mask2former.tools.score import METRICS, main

PAGE = (Path(__file__).parents[2] / "docs/evaluation.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^mask2former score ([a-z-]+)((?:.*\\\n)*.*)", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("metric", "arguments"), COMMANDS)
def test_documented_commands_parse(metric, arguments, capsys):
    """All flags exist, also optional ones. Commands fail for a missing file, not for their arguments."""
    flags = set(re.findall(r"--[a-z-]+", arguments))
    with pytest.raises(SystemExit):
        main([metric, "--help"])
    assert flags and flags <= set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    words = shlex.split(re.sub(r"\[.*|\\\n", " ", arguments))
    assert main([metric, *words]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_each_metric_is_documented_and_each_key_exists():
    assert {metric for metric, _ in COMMANDS} == METRICS.keys()
    keys = set(re.findall(r"`((?:TEST|DATASETS|MODEL)\.[A-Z_.]+)", PAGE))
    assert keys <= {*DEFAULTS, *(key.rsplit(".", 1)[0] for key in DEFAULTS)} and "TEST.BOUNDARY" in keys
