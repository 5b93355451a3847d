"""Starts training runs quickly: imports everything once, then forks a process for each command line.

Reads one JSON list of arguments a line; answers with the process id, then, when it has ended, with the exit
code (negative: the signal). It writes metrics often and files slowly, to give a killer time to strike.
"""

import json
import os
import sys
import time

import torch
import torch._dynamo  # by every optimizer, late and slowly
import torch.utils.tensorboard

from mask2former.engine import hooks
from mask2former.tools.train import main

SLOWNESS = 0.03  # seconds


def slow_fsync(descriptor, fsync=os.fsync):
    time.sleep(SLOWNESS)
    fsync(descriptor)


def serve():
    torch.set_num_threads(1)
    hooks.LOG_PERIOD = 3
    os.fsync = slow_fsync
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the runs print must not look like answers
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(main(json.loads(line)))
        answers.write(f"{child}\n")
        answers.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")


if __name__ == "__main__":
    serve()
