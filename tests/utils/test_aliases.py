"""Former names of commands still run the command, and say the new name."""

import sys

import pytest

from mask2former.utils.aliases import run_alias


@pytest.mark.parametrize("argv", [["--flag"], None])
def test_alias_runs_the_command_and_names_it(argv, monkeypatch, capsys):
    calls: list[list[str]] = []
    monkeypatch.setattr(sys, "argv", ["program", "--flag"])
    assert run_alias("old-name", "a-command sub", lambda given: calls.append(given) or 3, argv) == 3
    assert calls == [["sub", "--flag"]]
    expected = "old-name is now `mask2former a-command sub`; the old name goes in the next release\n"
    assert capsys.readouterr().err == expected
