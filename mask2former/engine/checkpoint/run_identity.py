"""Starting again after a failure: whose run lies in OUTPUT_DIR, and whether it can be continued there."""

import logging
import os
from pathlib import Path

from mask2former.utils.atomic_files import atomic_write
from mask2former.utils.comm import broadcast_object, launch_id

logger = logging.getLogger(__name__)

JOB_FILE = "job"
RUN_ID, NAMELESS = "TORCHELASTIC_RUN_ID", "none"  # of torch's launchers, and what they call a job by default


def _job() -> str:
    """The same in all attempts of a launch, another in each launch; empty where nothing could start again.

    How often a launcher has started its processes is no help: with several machines each counts for itself.
    """
    name = os.environ.get(RUN_ID, NAMELESS)
    return launch_id() if name == NAMELESS else name


def note_job(folder: Path) -> None:
    """From here on the run in `folder` is this launch's own."""
    with atomic_write(folder / JOB_FILE) as file:
        file.write(_job().encode())


def continues_own_run(folder: Path) -> bool:
    """Whether this launch has begun the run in `folder`, and is here again after a failure.

    An earlier run there is not to be continued. The main process decides.
    """
    noted, job = folder / JOB_FILE, _job()
    own = bool(broadcast_object(bool(job) and noted.is_file() and noted.read_text() == job))
    if own:
        logger.info("this launch has begun the run in %s: it goes on from its last checkpoint", folder)
    return own
