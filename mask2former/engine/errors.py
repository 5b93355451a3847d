"""Errors that end a training run."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to change, no traceback needed."""


class ProcessError(TrainingError):
    """A process or a machine waited for others in vain, or lost them."""
