"""Output folder at a URL: the run is written to a local folder, and its files are copied to the URL.

A run needs a local disk, as it appends to files, renames them and waits until they are on disk. One process
per machine copies that machine's files. The pointer to the last checkpoint is copied last, when all machines
are done, and a newer checkpoint than it names may be incomplete. What could not be copied is retried with the
next checkpoint.
"""

import fnmatch
import functools
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from filelock import FileLock
from fvcore.common.config import CfgNode
from iopath.common.file_io import get_cache_dir

from mask2former.engine.checkpoint.run_folder import (
    CHECKPOINTS,
    LOCK,
    POINTER,
    RUN_FILES,
    RunFolder,
    acquire_lock,
    step_in,
)
from mask2former.engine.checkpoint.run_identity import JOB_FILE
from mask2former.engine.loggers import IDS_FILE, MLFLOW_DATABASE
from mask2former.engine.metrics_log import METRICS_FILE
from mask2former.utils.atomic_files import UNFINISHED
from mask2former.utils.comm import barrier, gather_objects, is_main_process, rank
from mask2former.utils.storage import download, is_remote, names_in, remove, to_path, upload

logger = logging.getLogger(__name__)

RESUMED = {
    JOB_FILE,
    METRICS_FILE,
    IDS_FILE,
    MLFLOW_DATABASE,
    "log.txt",
    POINTER,
}  # files that a resumed run reads or appends to
SKIPPED = re.compile(rf"{re.escape(UNFINISHED)}|{re.escape(LOCK)}$")
PROBE = "probe"


@functools.cache
def run_folder(output_dir: str) -> RunFolder:
    """Return the run folder of OUTPUT_DIR, one object per process."""
    return RemoteRunFolder(output_dir) if is_remote(output_dir) else RunFolder(output_dir)


def output_folder(cfg: CfgNode) -> Path:
    """Return the local folder that files of OUTPUT_DIR are written to."""
    return run_folder(cfg.OUTPUT_DIR).path


class RemoteRunFolder(RunFolder):
    """Output folder at a URL; `path` is the local folder."""

    def __init__(self, url: str) -> None:
        machine, self._local_rank = divmod(rank(), int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
        name = f"{hashlib.sha256(url.encode()).hexdigest()[:16]}_{machine}"
        super().__init__(Path(get_cache_dir()) / "runs" / name)
        self.url = to_path(url)
        self._copied: dict[Path, int] = {}  # modification times

    def __str__(self) -> str:
        return f"{self.url} (locally {self.path})"

    def begin(self, training: bool) -> None:
        """Create an empty local folder with the files that a run continues, and check the URL.

        Raises:
            OSError: the URL cannot be read or written, or another run on this machine uses it.
        """
        if self._owns_files():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = acquire_lock(self.path.with_name(self.path.name + LOCK), str(self.url))
            shutil.rmtree(self.path, ignore_errors=True)
            self.path.mkdir()
            for path in (self.path / name for name in names_in(self.url) & RESUMED):
                # Marked as copied, or other machines would copy it back
                self._copied[path] = self._fetched(path).stat().st_mtime_ns
        if is_main_process():
            (self.path / PROBE).write_bytes(bytes(1 << 16))
            if failure := self._copy([Path(PROBE)]):
                raise OSError(f"OUTPUT_DIR {self.url} cannot be written to: {failure}")
            (self.path / PROBE).unlink()
            remove(self.url / PROBE)
        barrier()

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Copy the rest and delete the local folder.

        After an error, when other processes may be gone, the pointer is not copied.
        """
        failure = self._copy_new() if error else self._copy_all()
        if failure and error:
            logger.warning("%s", failure)
        elif failure:
            raise OSError(f"{failure}. It is in {self.path} until the next run there")
        elif self._owns_files():
            shutil.rmtree(self.path, ignore_errors=True)

    def save(self, name: str, checkpoint: dict[str, Any], sharded: bool = False) -> Path:
        """Write a checkpoint locally, copy it and delete the local one."""
        path = super().save(name, checkpoint, sharded)
        if failure := self._copy_all():
            logger.warning("%s; retrying with the next checkpoint", failure)
        return path

    def _owns_files(self) -> bool:
        return self._local_rank == 0

    def set_earlier_run_aside(self) -> None:
        """Raise ValueError if there is an earlier run: many stores cannot rename."""
        names = names_in(self.url)
        if any(fnmatch.filter(names, pattern) for pattern in RUN_FILES):
            raise ValueError(
                f"OUTPUT_DIR {self.url} holds an earlier run: --resume continues it, or give another"
            )

    def _copy_all(self) -> str | None:
        """Copy new files and then the pointer, and delete local checkpoints; return the failure, if any."""
        failure = self._copy_new()
        failures = [text for text in gather_objects(failure) if text]
        if is_main_process() and not failures and (self.path / POINTER).exists():
            failure = self._copy([Path(POINTER)])
        if failure is None and self._owns_files():
            for path in self.path.glob(CHECKPOINTS):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return failure

    def _copy_new(self) -> str | None:
        """Copy new files except the pointer: the launch's name first, checkpoints last."""
        if not self._owns_files():
            return None
        files = [path.relative_to(self.path) for path in self.path.rglob("*") if path.is_file()]
        files = [file for file in files if file.name != POINTER and not SKIPPED.search(str(file))]
        files.sort(key=lambda file: (fnmatch.fnmatch(file.parts[0], CHECKPOINTS), file.name != JOB_FILE))
        return self._copy(files)

    def _copy(self, files: Iterable[Path]) -> str | None:
        """Copy those of the files that have changed; return the failure, if any."""
        for file in files:
            path, url = self.path / file, self.url / file
            modified = path.stat().st_mtime_ns
            if self._copied.get(path) == modified:
                continue
            try:
                upload(path, url)
            except OSError as error:
                return f"{url} cannot be written ({error})"
            self._copied[path] = modified
        return None

    def _names(self) -> list[str]:
        """Return the checkpoints up to the one that the pointer names: newer ones may be incomplete."""
        pointer = self.path / POINTER
        if not pointer.is_file():
            return []
        names, pointed = names_in(self.url), pointer.read_text(errors="replace").strip()
        newest = step_in(pointed) if pointed in names else None
        found = fnmatch.filter(names, CHECKPOINTS)
        return [name for name in found if newest is None or (step_in(name) or 0) <= newest]

    def _fetched(self, path: Path) -> Path:
        with FileLock(path.with_name(path.name + LOCK)):
            if not path.exists():
                source, unfinished = self.url / path.name, path.with_name(path.name + UNFINISHED)
                for file in source.iterdir() if source.is_dir() else [source]:
                    download(file, unfinished / file.relative_to(source))
                unfinished.rename(path)
        return path
