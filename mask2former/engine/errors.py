"""Errors and the exit code that end a training run."""

PREEMPTED = 75  # exit code "temporary failure, try again" (EX_TEMPFAIL of sysexits.h)


class TrainingError(RuntimeError):
    """Failure that needs no traceback: the message gives the cause and what to change."""


class ProcessError(TrainingError):
    """Lost connection: other processes or machines did not come in time, or ended."""
