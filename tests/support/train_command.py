"""The script `train_net.py` in a process of its own."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "train_net.py"


def start_command(*argv):
    """Start `train_net.py` in a process that leads a process group, as in a terminal."""
    command = [sys.executable, str(SCRIPT), *argv]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A shell starts what runs in its background with Ctrl-C ignored, and children inherit that.
    heed_ctrl_c = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, env=env, start_new_session=True, preexec_fn=heed_ctrl_c, **pipes)


def run_command(*argv):
    """Run `train_net.py` until it ends."""
    process = start_command(*argv)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
