"""The commands of docs/video.md have flags that exist, and films are found as it says."""

import re
import shlex
from pathlib import Path

import pytest

from mask2former.tools.predict import parse_arguments
from mask2former.tools.prediction.films import find_films

PAGE = (Path(__file__).parents[2] / "docs/video.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^mask2former predict (.+)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_documented_commands_are_of_one_film(command):
    arguments = parse_arguments(shlex.split(command))
    (film,) = find_films(arguments, list(arguments.input))
    assert isinstance(film.output, Path) and film.output.suffix == ".mp4"


def test_flags_that_the_text_names_exist(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    section = PAGE[PAGE.index("## Tracks with any") : PAGE.index("\n## Video instance segmentation")]
    flags = set(re.findall(r"`(--[a-z-]+)", section))
    assert len(COMMANDS) == 4 and len(flags) >= 4
    assert flags <= set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
