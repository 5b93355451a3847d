"""OUTPUT_DIR at an address: this machine writes to a folder of its own, from where files are copied there.

What writes a run needs a disk: it appends, renames, and waits until what it wrote is safe. So the folder
holds what is new, and the address all that was. The pointer to the last checkpoint is copied after all else,
and checkpoints that are newer than it are not there whole. A copy that fails is made up for by the next.
"""

import fnmatch
import functools
import hashlib
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fvcore.common.config import CfgNode
from iopath.common.file_io import file_lock, get_cache_dir

from mask2former.engine.checkpoint.lock import hold
from mask2former.engine.checkpoint.run_folder import LOCK, POINTER, RUN_FILES, RunFolder, step_in
from mask2former.engine.checkpoint.run_identity import JOB_FILE
from mask2former.engine.metrics_log import METRICS_FILE
from mask2former.utils.atomic_files import UNFINISHED
from mask2former.utils.comm import barrier, gather_objects, is_main_process, rank
from mask2former.utils.storage import download, is_remote, make_folder, names_in, remove, to_path, upload

logger = logging.getLogger(__name__)

CONTINUED = (JOB_FILE, METRICS_FILE, "log.txt", POINTER)  # what a run reads of itself, or goes on writing to
PASSING = (UNFINISHED, LOCK)  # ends of names that mean nothing to anybody else
PROBE = "probe"
CHECKPOINTS = "model_*"


@functools.cache
def run_folder(output_dir: str) -> RunFolder:
    """The folder of the run at OUTPUT_DIR, on this machine; the same one for all who ask."""
    return MirroredFolder(output_dir) if is_remote(output_dir) else RunFolder(output_dir)


def output_folder(cfg: CfgNode) -> Path:
    """Where files of OUTPUT_DIR are written on this machine."""
    return run_folder(cfg.OUTPUT_DIR).path


@contextmanager
def ended(folder: RunFolder) -> Iterator[None]:
    """After the block the run is where OUTPUT_DIR says.

    Raises:
        OSError: all is done, but cannot be copied to an address.
    """
    try:
        yield
    except BaseException:
        folder.end(failed=True)
        raise
    folder.end()


def _is_first_here() -> bool:
    """Whether this process copies for all on its machine."""
    return rank() % _processes_here() == 0


def _processes_here() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


class MirroredFolder(RunFolder):
    """A run's folder at an address. The first process of each machine copies for all there."""

    def __init__(self, address: str) -> None:
        name = f"{hashlib.sha256(address.encode()).hexdigest()[:16]}_{rank() // _processes_here()}"
        super().__init__(Path(get_cache_dir()) / "runs" / name)
        self.address = to_path(address)
        self._copied: dict[Path, tuple[int, int]] = {}
        self._made: set[Path] = set()

    def __str__(self) -> str:
        return f"{self.address} (on this machine {self.path})"

    def begin(self, training: bool) -> None:
        """Have an empty folder, with what a run goes on with; see that the address can be written to.

        Raises:
            OSError: the address cannot be read or written, or another run on this machine does so.
        """
        if _is_first_here():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = hold(self.path.with_name(self.path.name + LOCK), str(self.address))
            shutil.rmtree(self.path, ignore_errors=True)
            self.path.mkdir(parents=True)
            for name in names_in(self.address) & set(CONTINUED):
                self._bring(self.path / name)
                self._copied[self.path / name] = _state(
                    self.path / name
                )  # or each machine would copy it back
        if is_main_process():
            self._check_writable()
        barrier()

    def _check_writable(self) -> None:
        probe = self.path / PROBE
        probe.write_bytes(bytes(1 << 16))
        try:
            self._upload(probe, self.address / PROBE)
        except OSError as error:
            raise OSError(f"OUTPUT_DIR {self.address} cannot be written to: {error}") from error
        probe.unlink()
        remove(self.address / PROBE)

    def publish(self) -> None:
        """Copy the checkpoint that is new, then delete it here."""
        if failure := self._copy_all():
            logger.warning("%s; it is tried again with the next checkpoint", failure)

    def end(self, failed: bool = False) -> None:
        """Copy the rest, without a new pointer where other processes may be gone; delete the folder here."""
        failure = self._copy_new() if failed else self._copy_all()
        if failure and failed:
            logger.warning("%s", failure)
        elif failure:
            raise OSError(f"{failure}. It is in {self.path} until the next run there")
        elif _is_first_here():
            shutil.rmtree(self.path, ignore_errors=True)

    def set_earlier_run_aside(self) -> None:
        """Not at an address, where moving may mean to copy: a ValueError if there is an earlier run."""
        names = names_in(self.address)
        if any(fnmatch.filter(names, pattern) for pattern in RUN_FILES):
            raise ValueError(
                f"OUTPUT_DIR {self.address} holds an earlier run: --resume continues it, or give another"
            )

    def _copy_all(self) -> str | None:
        """All that is new, and when all machines have done that, the pointer; what went wrong."""
        failure = self._copy_new()
        failures = [text for text in gather_objects(failure) if text]
        if is_main_process() and not failures:
            failure = self._copy([Path(POINTER)] if (self.path / POINTER).exists() else [])
        if failure is None and _is_first_here():
            for path in self.path.glob(CHECKPOINTS):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return failure

    def _copy_new(self) -> str | None:
        if not _is_first_here():
            return None
        files = [path.relative_to(self.path) for path in self.path.rglob("*") if path.is_file()]
        whole = [file for file in files if not any(part.endswith(PASSING) for part in file.parts)]
        return self._copy(sorted((file for file in whole if file.name != POINTER), key=_turn))

    def _copy(self, files: Iterable[Path]) -> str | None:
        """Copy those of the folder's files that have changed; what went wrong."""
        for path, address in ((self.path / file, self.address / file) for file in files):
            state = _state(path)
            try:
                if self._copied.get(path) != state:
                    self._upload(path, address)
            except OSError as error:
                return f"{address} cannot be written ({error})"
            self._copied[path] = state
        return None

    def _upload(self, path: Path, address: Path) -> None:
        if address.parent not in self._made:
            make_folder(address.parent)
            self._made.add(address.parent)
        upload(path, address)

    def _completes_parts(self) -> bool:
        return _is_first_here()

    def _checkpoints(self) -> list[str]:
        """Those that the pointer vouches for: newer ones may not be there whole."""
        names, pointer = names_in(self.address), self.path / POINTER
        if not pointer.is_file():
            return []
        pointed = pointer.read_text().strip()
        newest = step_in(pointed) if pointed in names else None
        found = fnmatch.filter(names, CHECKPOINTS)
        return [name for name in found if newest is None or (step_in(name) or 0) <= newest]

    def _bring(self, path: Path) -> None:
        with file_lock(str(path)):
            if path.exists():
                return
            source, unfinished = self.address / path.name, path.with_name(path.name + UNFINISHED)
            for file in source.iterdir() if source.is_dir() else [source]:
                download(file, unfinished / file.relative_to(source))
            os.replace(unfinished, path)


def _state(path: Path) -> tuple[int, int]:
    """What changes when a file is written."""
    return path.stat().st_mtime_ns, path.stat().st_size


def _turn(file: Path) -> tuple[bool, bool]:
    """Whose run it is comes first, as a restart asks for that; checkpoints, which take long, last."""
    return fnmatch.fnmatch(file.parts[0], CHECKPOINTS), file.name != JOB_FILE
