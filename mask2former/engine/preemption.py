"""SIGTERM: the step at work is finished, a checkpoint written, and the run left with an exit code of its own.

Schedulers send it some time before they take the machine away. One process that got it is enough: after each
step all agree, so that they leave together.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from mask2former.distributed import barrier, has_failure, sum_over_processes
from mask2former.engine.hooks import CheckpointHook
from mask2former.engine.trainer import Hook, Trainer

PREEMPTED = 75  # the exit code: "temporary failure, try again" (EX_TEMPFAIL of sysexits.h)

_noted: list[int] = []


class PreemptedError(Exception):
    """The run was told to stop, and its checkpoint is written."""


def _note(number: int, frame: FrameType | None) -> None:
    if has_failure():  # it is not a scheduler that sends it, but the launcher: there is no next step
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    _noted.append(number)


@contextmanager
def sigterm_noted() -> Iterator[None]:
    """Within the block SIGTERM does not end the process but waits for `PreemptionHook`."""
    _noted.clear()
    before = signal.signal(signal.SIGTERM, _note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def was_told_to_stop() -> bool:
    """Whether this process itself got SIGTERM in the last `sigterm_noted`."""
    return bool(_noted)


class PreemptionHook(Hook):
    """Ends the run after the step in which a process got SIGTERM; it follows the checkpoints' hook."""

    def __init__(self, checkpoints: CheckpointHook) -> None:
        self.checkpoints = checkpoints

    def after_step(self, trainer: Trainer) -> None:
        """Agree; save and leave, unless nothing is left to do but what follows the last step."""
        told = sum_over_processes(torch.tensor(int(was_told_to_stop()), device=trainer.device))
        if told and trainer.done < trainer.max_iter:
            self.checkpoints.save_now(trainer)
            barrier()  # who leaves earlier is taken for one that failed
            raise PreemptedError(f"stopped by SIGTERM after step {trainer.done}")
