"""Early and readable errors for an OUTPUT_DIR that cannot be written to or is too full."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from mask2former.engine.errors import TrainingError
from mask2former.utils.atomic_files import UNFINISHED

# Matched in the text, which joins the errors of several processes. torch reports a position in the file.
FULL = re.compile(rf"\[Errno ({errno.ENOSPC}|{errno.EDQUOT}|{errno.EFBIG})\]|unexpected pos")


def check_writable(folder: Path) -> None:
    """Create `folder` and a temporary file in it; an OSError names the folder."""
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        advice = "give another one, or set PYTHONUTF8=1 if the locale is not UTF-8"
        raise OSError(f"OUTPUT_DIR {folder}: TensorBoard writes to UTF-8 names only; {advice}") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix="probe_", suffix=UNFINISHED) as file:
            file.write(bytes(1 << 16))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(f"OUTPUT_DIR {folder} cannot be written to: {error}") from error


def check_space(folder: Path, model: nn.Module, optimizer: Optimizer, others: Iterable[Tensor]) -> None:
    """Raise TrainingError if a checkpoint, with `others` in it, does not fit on the disk."""
    free, needed = shutil.disk_usage(folder).free, checkpoint_bytes(model, optimizer, others)
    if free < needed:
        raise TrainingError(
            f"OUTPUT_DIR {folder} has {free / 1e9:.3g} GB free, but a checkpoint takes {needed / 1e9:.3g} GB"
        )


def checkpoint_bytes(model: nn.Module, optimizer: Optimizer, others: Iterable[Tensor] = ()) -> int:
    """Return the size of weights, other tensors, and optimizer state, one or two numbers per parameter."""
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states = trained * (1 if isinstance(optimizer, SGD) else 2)
    return sum(t.numel() * t.element_size() for t in (*model.state_dict().values(), *others, *states))


@contextmanager
def write_errors_explained(path: Path) -> Iterator[None]:
    """Raise TrainingError if the block cannot write `path`; the message mentions a full disk if likely."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        is_full = FULL.search(str(error))
        if not (is_full or isinstance(error, OSError)):
            raise
        raise TrainingError(
            f"{path} cannot be written ({str(error).splitlines()[0]}). {'Is the disk full? ' * bool(is_full)}"
            "Earlier checkpoints are complete; --resume continues from the last"
        ) from error
