"""Two runs never write to one folder, and a lock ends with its process."""

import os
import re
import signal
import subprocess
import sys

import pytest
from process_runs import until

from mask2former.engine.checkpoint.run_folder import acquire_lock

HOLDER = """
import os, sys, time
from pathlib import Path
from mask2former.engine.checkpoint.run_folder import acquire_lock
held = acquire_lock(Path(sys.argv[1]), "x")
if not os.fork():  # the child lets go of the lock before this
    print("holding", flush=True)
time.sleep(60)
"""


def test_a_lock_ends_with_its_process_even_if_a_forked_child_lives_on(tmp_path):
    file = tmp_path / "lock"
    argv = [sys.executable, "-c", HOLDER, str(file)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True) as holder:
        assert holder.stdout.readline() == "holding\n"
        with pytest.raises(OSError, match="another run is at work in the folder:"):
            acquire_lock(file, "the folder")
        holder.kill()
        holder.wait()
        os.killpg(holder.pid, 0)  # the forked process is there
        acquire_lock(file, "the folder").release()
        os.killpg(holder.pid, signal.SIGKILL)


def test_a_second_run_in_the_same_folder_is_refused_and_the_first_continues(server, tmp_path):
    log = tmp_path / "log.txt"
    first = server.start(tmp_path, SOLVER__MAX_ITER=5000, SOLVER__CHECKPOINT_PERIOD=5)
    until(lambda: (tmp_path / "last_checkpoint").exists())
    begun = log.read_text()
    printed = server.start(tmp_path, SOLVER__MAX_ITER=1).finish(1)
    assert re.search(rf"error: another run is at work in {re.escape(str(tmp_path))}:", printed)
    until(lambda: len(log.read_text()) > len(begun) + 500)
    assert not first.ended() and not (tmp_path / "earlier_run_1").exists()
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
