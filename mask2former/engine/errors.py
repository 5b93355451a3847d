"""Errors that end a training run."""


class TrainingError(RuntimeError):
    """Failure that needs no traceback: the message gives the cause and what to change."""


class ProcessError(TrainingError):
    """Lost connection: other processes or machines did not come in time, or ended."""
