"""The fuzzing script: its valid inputs are read, and no process of it outlives it.

What it found is tested beside the parsers.
"""

import subprocess
import sys
import time
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "fuzz.py"


def fuzz(*flags):
    command = [sys.executable, SCRIPT, *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid):
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_valid_inputs_of_all_parsers_are_read(tmp_path):
    with fuzz("--minutes", "0", "--findings", tmp_path) as process:
        output = process.stdout.read()
    assert process.returncode == 0, output
    assert output.endswith("kinds of findings: 0\n")


def test_the_reading_process_ends_when_the_script_is_killed(tmp_path):
    with fuzz("--target", "classes", "--minutes", "10", "--findings", tmp_path) as process:
        wait_until(lambda: children(process.pid))
        (worker,) = children(process.pid)
        process.kill()
    wait_until(lambda: not is_running(worker))
