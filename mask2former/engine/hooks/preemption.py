"""SIGTERM: the step or the evaluation at hand ends soon, a checkpoint is written, the exit code tells of it.

Schedulers send it some time before they take the machine away. One process that got it is enough: others
that evaluate learn of it, and after each step, and before results are gathered, all agree to leave together.
"""

import signal
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from mask2former.engine.hooks.standard import CheckpointHook
from mask2former.engine.trainer import Hook, Trainer
from mask2former.evaluation.evaluator import Results
from mask2former.utils.comm import all_reduce_any, barrier, has_failure, has_stop, note_stop

PREEMPTED = 75  # the exit code: "temporary failure, try again" (EX_TEMPFAIL of sysexits.h)

_noted: list[int] = []


class PreemptedError(Exception):
    """The run was told to stop; all processes agreed, and raise this together."""


def _note(number: int, frame: FrameType | None) -> None:
    if has_failure():  # it is not a scheduler that sends it, but the launcher: there is no next step
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    _noted.append(number)
    note_stop()


@contextmanager
def sigterm_noted() -> Iterator[None]:
    """Within the block SIGTERM does not end the process but waits for `leave_if_told`."""
    _noted.clear()
    before = signal.signal(signal.SIGTERM, _note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def was_told_to_stop() -> bool:
    """Whether this process itself got SIGTERM in the last `sigterm_noted`."""
    return bool(_noted)


def leave_if_told() -> None:
    """Agree on whether to leave; every process must ask.

    Raises:
        PreemptedError: a process got SIGTERM.
    """
    if all_reduce_any(was_told_to_stop()):
        raise PreemptedError("stopped by SIGTERM")


@contextmanager
def saved_when_told(trainer: Trainer, checkpoints: CheckpointHook) -> Iterator[None]:
    """`trainer` trains within the block; if it leaves because of SIGTERM, a checkpoint is written."""
    start = trainer.done
    try:
        yield
    except PreemptedError:
        if (
            start < trainer.done < trainer.max_iter
        ):  # else there is nothing new, or the final weights are there
            checkpoints.save_now(trainer)
        barrier()  # who leaves earlier is taken for one that failed
        raise


class PreemptionHook(Hook):
    """Ends the run once a process got SIGTERM; it follows all other hooks."""

    def before_train(self, trainer: Trainer) -> None:
        """Not one step more."""
        leave_if_told()

    def after_step(self, trainer: Trainer) -> None:
        """Leave, unless nothing is left to do but what follows the last step."""
        if trainer.done < trainer.max_iter:
            leave_if_told()


class UntilTold:
    """The batches of a loader for evaluation, which end early once any process was told to stop."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            if was_told_to_stop() or has_stop():
                return
            yield batch


class LeavingPoint:
    """An evaluator without results: where those after it would gather theirs, it leaves if told to."""

    def reset(self) -> None:
        """Nothing is kept."""

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Nothing is taken."""

    def evaluate(self) -> Results:
        """No results; a PreemptedError as of `leave_if_told`."""
        leave_if_told()
        return OrderedDict()
