"""OUTPUT_DIR's disk: what would fail after hours shall fail at once, and say what to do."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.optim import SGD

from mask2former.engine.errors import TrainingError
from mask2former.engine.trainer import Trainer
from mask2former.utils.atomic_files import UNFINISHED

FULL = "Is the disk full? "
# As text, since several processes' errors are one. Torch itself tells of a position in the file.
NO_ROOM = re.compile(rf"\[Errno ({errno.ENOSPC}|{errno.EDQUOT}|{errno.EFBIG})\]|unexpected pos")


def check_writable(folder: Path) -> None:
    """Write a file into `folder`, which is made if it is not there.

    Raises:
        OSError: that cannot be done; the message names the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix="probe_", suffix=UNFINISHED) as file:
            file.write(bytes(1 << 16))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(f"OUTPUT_DIR {folder} cannot be written to: {error}") from error


def checkpoint_bytes(trainer: Trainer) -> int:
    """What a checkpoint takes: weights, and as much again for each number that the optimizer keeps of one."""
    tensors = trainer.plain_model.state_dict().values()
    kept = 1 if isinstance(trainer.optimizer, SGD) else 2
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) + kept * sum(
        parameter.numel() * parameter.element_size() for parameter in trainer.parameters
    )


def check_space(folder: Path, trainer: Trainer) -> None:
    """Compare what is free with what a checkpoint takes.

    Raises:
        TrainingError: not one fits.
    """
    free, needed = shutil.disk_usage(folder).free, checkpoint_bytes(trainer)
    if free < needed:
        raise TrainingError(
            f"OUTPUT_DIR {folder} has {free / 1e9:.3g} GB free, but a checkpoint takes {needed / 1e9:.3g} GB"
        )


@contextmanager
def failure_explained(path: Path) -> Iterator[None]:
    """The file `path` is written.

    Raises:
        TrainingError: it cannot be written; the message asks about a full disk where that may be the cause.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        question = FULL if NO_ROOM.search(str(error)) else ""
        if not (question or isinstance(error, OSError)):
            raise
        raise TrainingError(
            f"{path} cannot be written ({str(error).splitlines()[0]}). {question}Checkpoints written before "
            "are whole; --resume continues from the last"
        ) from error
