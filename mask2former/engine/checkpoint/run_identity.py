"""Restarts after a failure: a launch that finds its own run in OUTPUT_DIR continues it, and no other run."""

import logging
import os
from pathlib import Path

from mask2former.utils.atomic_files import atomic_write
from mask2former.utils.comm import broadcast_object, launch_id

logger = logging.getLogger(__name__)

JOB_FILE = "job"
NAMELESS = "none"  # the default job name of torch's launchers


def _job() -> str:
    """Return a name that all attempts of a launch share; empty if nothing could restart this process.

    Launchers on several machines count restarts independently, so the attempt's number is no help.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID", NAMELESS)
    return launch_id() if name == NAMELESS else name


def claim_run(folder: Path) -> None:
    """Mark the run in `folder` as the run of this launch."""
    with atomic_write(folder / JOB_FILE) as file:
        file.write(_job().encode())


def is_own_run(folder: Path) -> bool:
    """Return True if an earlier attempt of this launch started the run in `folder`, as rank 0 sees it."""
    file, job = folder / JOB_FILE, _job()
    own = bool(broadcast_object(bool(job) and file.is_file() and file.read_text(errors="replace") == job))
    if own:
        logger.info("restarted: continuing the run in %s from its last checkpoint", folder)
    return own
