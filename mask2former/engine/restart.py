"""Starting again after a failure: whose run lies in OUTPUT_DIR, and whether it can be continued there."""

import os
from pathlib import Path

from mask2former.distributed import RESTARTS, of_main_process
from mask2former.engine.checkpoint import atomic_write

JOB = "MASK2FORMER_JOB"  # environment variable: the same in all attempts of a launch, another in each launch
JOB_FILE = "job"


def _job() -> str:
    return os.environ.get(JOB) or f"{os.environ.get('TORCHELASTIC_RUN_ID')} {os.getppid()}"


def note_job(folder: Path) -> None:
    """From here on the run in `folder` is this launch's own."""
    with atomic_write(folder / JOB_FILE) as file:
        file.write(_job().encode())


def continues_own_run(folder: Path) -> bool:
    """Whether launchers started the processes again after a failure, and had got as far as to begin the run.

    Before that `folder` may hold an earlier run, which is not to be continued. The main process decides: each
    machine's launcher is another.
    """
    noted = folder / JOB_FILE
    restarted = int(os.environ.get(RESTARTS, 0)) > 0
    return bool(of_main_process(restarted and noted.is_file() and noted.read_text() == _job()))
