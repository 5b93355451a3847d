"""Server that starts training commands quickly: it imports everything once and forks a process for each.

Each line of its input is a JSON object: the arguments of the training command, variables for its environment,
and a path. The command's output goes to that path, its process id to .pid and its exit code to .code beside
it. Launched processes are forked, too. Metrics are written often and files slowly, so that kills hit writes.
TEST_SLOW_STEP, TEST_SLOW_LOADER, TEST_RAISE and TEST_FULL_DISK disturb one step of one rank. In evaluation
number TEST_LONG_EVALUATION, from 0, rank 1 waits for SIGTERM.
"""

import dataclasses
import itertools
import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
import torch._dynamo  # by every optimizer, late and slowly
import torch.utils.tensorboard
from flaky_storage import FlakyStorage

from mask2former.engine import evaluate
from mask2former.engine import train as run
from mask2former.engine.hooks import standard as hooks
from mask2former.engine.hooks.preemption import sigterm_received
from mask2former.engine.launch import launcher as launch
from mask2former.engine.trainer import Trainer
from mask2former.tools.train import main
from mask2former.utils.comm import rank
from mask2former.utils.storage import path_manager

SLOWNESS = 0.03  # seconds

evaluations = itertools.count()


def slow_fsync(descriptor, fsync=os.fsync):
    time.sleep(SLOWNESS)
    fsync(descriptor)


def due(variable, step):
    """Return NUMBER of an environment variable `RANK STEP NUMBER` at this rank and step, else 0."""
    number, when, seconds = map(float, os.environ.get(variable, "-1 0 0").split())
    return seconds if (rank(), step) == (number, when) else 0.0


def troubled(trainer, batch, backward=Trainer._backward):
    time.sleep(due("TEST_SLOW_STEP", trainer.done))
    if due("TEST_RAISE", trainer.done):
        raise ZeroDivisionError(f"in step {trainer.done}")
    if size := due("TEST_FULL_DISK", trainer.done):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), resource.RLIM_INFINITY))
    return backward(trainer, batch)


def slow_stream(*options, build=run.build_train_loader, **more):
    for step, batch in enumerate(build(*options, **more)):
        time.sleep(due("TEST_SLOW_LOADER", step))
        yield batch


def long_evaluation(model, loader, evaluator, predict, evaluate=evaluate.inference_on_dataset):
    if rank() == 1 and str(next(evaluations)) == os.environ.get("TEST_LONG_EVALUATION"):
        sys.stdout.write("evaluating\n")
        sys.stdout.flush()
        while not sigterm_received():
            time.sleep(0.01)
    return evaluate(model, loader, evaluator, predict)


def forking(plan, config=launch._launch_config):
    return dataclasses.replace(config(plan), start_method="fork")


def write(path, text):
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").rename(path)


def run_command(argv, environ, log):
    """Run a command in this process, and exit."""
    os.setsid()
    os.environ.update(environ)
    with log.open("w", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        code = main(argv)
    except BaseException as error:
        traceback.print_exc()
        code = error.code if isinstance(error, SystemExit) else 99
    sys.stdout.flush()
    os._exit(code)


def serve():
    torch.set_num_threads(1)
    hooks.LOG_PERIOD = 3
    os.fsync = slow_fsync
    # As in a process that is spawned, not forked from a launcher
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    launch._launch_config = forking
    Trainer._backward = troubled
    run.build_train_loader = slow_stream
    evaluate.inference_on_dataset = long_evaluation
    path_manager.register_handler(FlakyStorage())
    for line in sys.stdin:
        wanted = json.loads(line)
        log = Path(wanted["log"])
        if os.fork():
            continue
        child = os.fork()
        if not child:
            run_command(wanted["argv"], wanted["environ"], log)
        write(log.with_suffix(".pid"), str(child))
        write(log.with_suffix(".code"), str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
        os._exit(0)


if __name__ == "__main__":
    serve()
