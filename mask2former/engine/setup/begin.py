"""The start of a run: its folder, its log, and the checkpoint to continue from."""

import logging
import sys
from dataclasses import dataclass, field
from typing import Any

from mask2former.data.records import Datasets
from mask2former.engine.checkpoint.disk_space import check_writable
from mask2former.engine.checkpoint.remote import run_folder
from mask2former.engine.checkpoint.run_folder import RunFolder
from mask2former.engine.checkpoint.run_identity import is_own_run
from mask2former.engine.logger import describe_environment, setup_logger
from mask2former.engine.setup.threads import share_processor
from mask2former.utils.comm import is_main_process, rank

logger = logging.getLogger(__name__)


@dataclass
class Run:
    """What a run has besides its config.

    Attributes:
        folder: OUTPUT_DIR.
        datasets: the datasets that it has read.
        saved: the checkpoint to continue from, as `RunFolder.load_last` returns it.
        is_continued: the files in the folder are continued; otherwise an earlier run there is set aside.
    """

    folder: RunFolder
    datasets: Datasets = field(default_factory=Datasets)
    saved: dict[str, Any] | None = None
    is_continued: bool = False


def begin_run(output_dir: str, *, training: bool, resume: bool = False) -> Run:
    """Take the folder at OUTPUT_DIR and a share of the processor into use, and log to the folder.

    Every process must call this.

    Raises:
        OSError: another run trains there, or it cannot be written to.
        ValueError: with `resume`, no checkpoint can be read, or processes found different ones.
    """
    folder = run_folder(output_dir)
    folder.begin(training=training)
    if is_main_process():
        check_writable(folder.path)
    setup_logger(folder.path, rank())
    threads = share_processor()
    if is_main_process():
        logger.info("environment\n%s\n  command: %s", describe_environment(threads), " ".join(sys.argv))
    is_continued = resume or (training and is_own_run(folder.path))
    saved = folder.load_last() if is_continued else None
    return Run(folder, saved=saved, is_continued=is_continued)
