"""The start of a run: its folder and its log."""

import logging
import sys

from mask2former.engine.checkpoint.disk_space import check_writable
from mask2former.engine.checkpoint.remote import run_folder
from mask2former.engine.checkpoint.run_folder import RunFolder
from mask2former.engine.logger import describe_environment, setup_logger
from mask2former.utils.comm import is_main_process, rank

logger = logging.getLogger(__name__)


def begin_run(output_dir: str, *, training: bool) -> RunFolder:
    """Take the run folder at OUTPUT_DIR into use, and log to it; every process must call it.

    Raises:
        OSError: another run trains there, or it cannot be written to.
    """
    folder = run_folder(output_dir)
    folder.begin(training=training)
    if is_main_process():
        check_writable(folder.path)
    setup_logger(folder.path, rank())
    if is_main_process():
        logger.info("environment\n%s\n  command: %s", describe_environment(), " ".join(sys.argv))
    return folder
