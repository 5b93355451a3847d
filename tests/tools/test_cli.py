"""The command `mask2former`: its subcommands, errors, and the former names of commands."""

import importlib
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from mask2former.tools import cli, zoo
from mask2former.version import __version__
from mask2former.weights.model_zoo import published_models

ROOT = Path(__file__).parents[2]


def run(*arguments):
    return subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules.*:RuntimeWarning")
@pytest.mark.parametrize("command", cli.COMMANDS)
def test_the_module_of_a_command_runs_it(capsys, monkeypatch, command):
    monkeypatch.setattr(sys, "argv", [command, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module(f"mask2former.tools.{command.replace('-', '_')}", run_name="__main__")
    assert not end.value.code and "usage: " in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_help_lists_every_command(capsys, arguments):
    assert cli.main(arguments) == 0
    listed = re.findall(r"^  ([\w-]+) +\S", capsys.readouterr().out, re.MULTILINE)
    assert listed == list(cli.COMMANDS)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_describes_its_flags(capsys, command):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: mask2former {command} ")


LONG = "\x1b[31m" + "x" * 5000


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "--input", "a", "--task", LONG],
        ["predict", "--input", "a", "--confidence-threshold", LONG],
        ["train", "--config-file", "a", f"--{LONG}"],
        ["train", "--config-file", "a", "--num-gpus", LONG],
        ["evaluate", "--config-file", "a", "--host", LONG],
        ["score", LONG],
        ["score", "semantic", "--gt-dir", "a", "--pred-dir", "a", "--label-ids", LONG],
        ["analyze", "--config-file", "a", "--runs", LONG],
        ["check-dataset", "a", f"--{LONG}"],
        ["doctor", LONG],
        ["config", "a", f"--{LONG}"],
        ["convert", "a", "b", f"--{LONG}"],
        ["zoo", LONG],
        ["web", "--port", LONG],
        [LONG],
    ],
    ids=lambda arguments: arguments[0][:20],
)
def test_wrong_flags_are_repeated_in_short_and_escaped(capsys, arguments):
    try:
        code = cli.main(arguments)
    except SystemExit as stop:
        code = stop.code
    message = capsys.readouterr().err.splitlines()[-1]
    assert code == 2
    assert "error: " in message and r"\x1b[31mxxx" in message.replace("\\\\", "\\") and len(message) < 650


@pytest.mark.parametrize(
    "script",
    ["train_net.py", "demo/demo.py", "datasets/prepare_films.py", "datasets/prepare_shapes.py"],
)
def test_scripts_end_as_commands_do_if_output_is_lost(script):
    with open("/dev/full", "w") as full:
        command = [sys.executable, ROOT / script, "--help"]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.stderr == "error: standard output is incomplete ([Errno 28] No space left on device)\n"
    assert result.returncode == 1


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"mask2former {__version__}\n"


@pytest.mark.parametrize(
    ("command", "advice"), [("tran", "did you mean `mask2former train`?"), ("x", "see `mask2former --help`")]
)
def test_an_unknown_command_is_an_error_with_the_nearest_one(capsys, command, advice):
    assert cli.main([command]) == 2
    assert capsys.readouterr().err == f"error: mask2former has no command '{command}'; {advice}\n"


WITHOUT_TORCH = """
import sys
from mask2former.tools import cli

cli.main([])
for command in cli.COMMANDS:
    for flag in ("--help", "--no-such-flag"):
        try:
            cli.main([command, flag])
        except SystemExit:
            assert "torch" not in sys.modules, (command, flag)
        else:
            raise AssertionError((command, flag))
"""


def test_help_and_wrong_flags_do_not_load_torch():
    result = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_exit_code_is_that_of_the_command():
    result = run("mask2former", "analyze", "--config-file", "gone.yaml")
    assert result.returncode == 1
    assert result.stderr.startswith("error: no config file 'gone.yaml'")


def test_the_zoo_is_a_table_or_json(capsys):
    assert zoo.main([]) == 0
    table = capsys.readouterr().out
    row = next(line for line in table.splitlines() if line.startswith("coco-panoptic-swin-l "))
    assert row.split()[1:6] == ["coco", "panoptic", "Swin-L", "(IN21k)", "57.8"]
    assert row.endswith("/model_final_f07440.pkl")
    assert "CC BY-NC 4.0" in table
    assert zoo.main(["--json"]) == 0
    models = json.loads(capsys.readouterr().out)
    assert models == [model._asdict() for model in published_models().values()]


@pytest.mark.parametrize(
    "name", ["mask2former.tools.analyze", "mask2former.tools.doctor", "mask2former.doctor"]
)
def test_a_former_module_says_its_new_name(name):
    result = run(name, "--help")
    command = name.rpartition(".")[2]
    assert result.returncode == 0
    assert result.stdout.startswith(f"usage: mask2former {command} ")
    assert result.stderr.startswith(f"python -m {name} is now `mask2former {command}`")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("script", "command"), [("mask2former-train", "train"), ("mask2former-demo", "predict")]
)
def test_a_former_script_says_its_new_name(script, command, capsys, monkeypatch):
    project = (ROOT / "pyproject.toml").read_text()
    module, function = re.search(rf'^{script} = "(.+):(.+)"', project, re.MULTILINE).groups()
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as stop:
        getattr(importlib.import_module(module), function)()
    assert stop.value.code == 0
    assert capsys.readouterr().err.startswith(f"{script} is now `mask2former {command}`")


@pytest.mark.parametrize("command", ["zoo", "--help", "train --help", "doctor"])
def test_a_command_ends_quietly_when_its_reader_has_gone(command):
    reader, writer = os.pipe()
    os.close(reader)
    arguments = [sys.executable, "-m", "mask2former", *command.split()]
    result = subprocess.run(arguments, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(writer)
    assert (result.returncode, result.stderr) == (0, "")
