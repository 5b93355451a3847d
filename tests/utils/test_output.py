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
