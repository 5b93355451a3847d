"""Commands whose output nobody reads, or cannot be written."""

import os
import subprocess
import sys

import pytest

PRINTS = """
import sys
from mask2former.utils.output import tolerant_output

@tolerant_output()
def main():
    for i in range(20_000):
        print("line", i)
    print("all printed", file=sys.stderr)
    return 5

sys.exit(main())
"""


def start(program, **streams):
    return subprocess.Popen([sys.executable, "-c", program], text=True, stderr=subprocess.PIPE, **streams)


def test_a_command_whose_reader_has_gone_finishes_with_its_own_exit_code():
    with start(PRINTS, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == "line 0\n"
        process.stdout.close()
        assert process.stderr.read() == "all printed\n"
    assert process.returncode == 5


def test_a_reader_of_both_streams_may_go():
    reader, writer = os.pipe()
    command = [sys.executable, "-c", PRINTS]
    with subprocess.Popen(command, stdout=writer, stderr=writer) as process:
        os.close(writer)
        os.close(reader)
    assert process.returncode == 5


def test_a_full_device_is_an_error_in_one_line():
    with open("/dev/full", "w") as full, start(PRINTS, stdout=full) as process:
        printed, *errors = process.stderr.read().splitlines()
    assert printed == "all printed"
    assert errors == ["error: standard output is incomplete ([Errno 28] No space left on device)"]
    assert process.returncode == 1


def test_output_may_be_closed():
    command = ["sh", "-c", '"$0" -c "$1" >&-', sys.executable, PRINTS]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (5, "all printed\n")


@pytest.mark.parametrize("end", ["raise SystemExit(3)", "1 / 0"])
def test_other_exits_and_errors_pass(end):
    program = PRINTS.replace("return 5", end)
    with open("/dev/full", "w") as full, start(program, stdout=full) as process:
        errors = process.stderr.read()
    assert "standard output is incomplete" in errors
    assert ("ZeroDivisionError" in errors) == (end == "1 / 0")
    assert process.returncode == 1


NAMES = r"""
import logging, sys
from mask2former.utils.output import print_error, tolerant_output

@tolerant_output()
def main():
    print("\U0001f600 a\tb\n\x1b[2J\udcff")
    sys.stderr.write("\r 50%|\N{FULL BLOCK}|\r")
    print_error("a\nb")
    logging.getLogger("mask2former").warning("%s is unused", "c\nd")

main()
"""


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"PYTHONIOENCODING": "ascii"}, r"\U0001f600"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, r"\U0001f600"),
        ({"PYTHONIOENCODING": "utf-8"}, "\U0001f600"),
    ],
)
def test_control_characters_and_those_that_the_terminal_lacks_are_escaped(environment, shown):
    command = [sys.executable, "-c", NAMES]
    result = subprocess.run(command, capture_output=True, env={**os.environ, **environment})
    out, err = result.stdout.decode(), result.stderr.decode()
    assert out == shown + " a\tb\n\\x1b[2J\\udcff\n"
    bar = "\N{FULL BLOCK}" if shown == "\U0001f600" else r"\u2588"
    assert err == f"\r 50%|{bar}|\\rerror: a\\nb\nWARNING: c\\nd is unused\n"
    assert result.returncode == 0
