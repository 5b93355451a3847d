"""SIGTERM in training: finish the step, write a checkpoint, exit with code 75.

Schedulers send SIGTERM some time before they take the machine away. It is enough that one rank gets it: after
each step all ranks agree on whether to stop. An evaluation in progress is not cut short; if the process is
killed in it, the resumed run repeats it.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mask2former.engine.hooks.standard import CheckpointHook
from mask2former.engine.trainer import Hook, Trainer
from mask2former.utils.comm import all_reduce_any, has_failure, is_distributed

_received: list[int] = []


class PreemptedError(Exception):
    """A rank got SIGTERM; raised on all ranks together."""


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    if has_failure():  # sent by the launcher because another rank failed: there will be no next step
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    _received.append(number)


@contextmanager
def sigterm_deferred() -> Iterator[None]:
    """Within the block SIGTERM does not end the process; `PreemptionHook` stops the run after the step.

    A launched process that stops so ignores it from then on: its launcher passes on the signal that the
    process may already have had, and would end it while another rank still saves.
    """
    _received.clear()
    after = signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        yield
    except PreemptedError:
        after = signal.SIG_IGN if is_distributed() else after
        raise
    finally:
        signal.signal(signal.SIGTERM, after)


def sigterm_received() -> bool:
    """Return True if this process got SIGTERM within the last `sigterm_deferred` block."""
    return bool(_received)


class PreemptionHook(Hook):
    """Checkpoint and PreemptedError after a step in which a rank got SIGTERM; comes after all other hooks."""

    def __init__(self, checkpoints: CheckpointHook) -> None:
        self.checkpoints = checkpoints

    def before_train(self, trainer: Trainer) -> None:
        self._stop_if_preempted()

    def after_step(self, trainer: Trainer) -> None:
        if trainer.done < trainer.max_iter:
            self._stop_if_preempted(trainer)

    def after_train(self, trainer: Trainer) -> None:
        """Stop after the final evaluation, with the exit code that the sender of SIGTERM expects."""
        self._stop_if_preempted()

    def _stop_if_preempted(self, to_save: Trainer | None = None) -> None:
        if all_reduce_any(sigterm_received()):
            if to_save is not None:
                self.checkpoints.save(to_save)
            raise PreemptedError("stopped by SIGTERM")
