"""Output folder of a run: write checkpoints and find the last one, whenever the process may have been killed.

A checkpoint appears under its name only when it is complete and on disk: it is written under another name
and renamed, whether it is a file or a folder of shards. It holds tensors, numbers and strings only, so that
reading it cannot run code.
"""

import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from mask2former.engine.checkpoint.disk_space import write_errors_explained
from mask2former.engine.checkpoint.sharded import PATH, read_sharded, write_sharded
from mask2former.engine.loggers import IDS_FILE, MLFLOW_DATABASE, MLFLOW_FILES
from mask2former.utils.atomic_files import UNFINISHED, atomic_write, sync_folder
from mask2former.utils.comm import all_reduce_any, broadcast_object, is_main_process
from mask2former.utils.sharding import gather_to_main
from mask2former.weights.safe_pickle import load_torch, reason_of

logger = logging.getLogger(__name__)

POINTER = "last_checkpoint"
FINAL = "model_final.pth"
BEST = "model_best.pth"  # weights alone, which no run is resumed from
SUFFIXES = FILE, SHARDED, _ = ".pth", ".sharded", ".parts"  # .parts: sharded, by earlier versions
CHECKPOINTS = "model_*"
LOCK = ".lock"
RUN_STATE = {
    "model": dict,
    "optimizer": dict,
    "iteration": int,
    "window": dict,
    "scaler": dict,
    "seed": int,
}  # key -> type
RUN_FILES = (*(f"model_*{end}" for end in SUFFIXES), POINTER, "metrics.json", "events.out.tfevents.*")
LOGGER_FILES = (IDS_FILE, "wandb", MLFLOW_DATABASE, MLFLOW_FILES)
RUN_COMPANIONS = ("config.yaml", "images", "inference", *LOGGER_FILES)  # do not make a run by themselves


class RunFolder:
    """Output folder on a local disk, and context of the run. Every process must call its methods."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __str__(self) -> str:
        return str(self.path)

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        pass

    def begin(self, training: bool) -> None:
        """Prepare for reading and writing; training locks the folder and deletes half-written files.

        Raises:
            OSError: another run trains there, or the folder cannot be written to.
        """
        if training and is_main_process():
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = acquire_lock(self.path / LOCK, str(self.path))
            for path in self.path.glob(f"*{UNFINISHED}*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def save(self, name: str, checkpoint: dict[str, Any], sharded: bool = False) -> Path:
        """Write `checkpoint`, whose tensors may be sharded, as the one to resume from, unless it is BEST.

        `sharded` writes a folder of shards, NAME.sharded, instead of the file NAME.pth.

        Raises:
            TrainingError: the checkpoint cannot be written.
        """
        path = (self.path / name).with_suffix(SHARDED if sharded else FILE)
        with write_errors_explained(path):
            if sharded:
                self._write_sharded(path, checkpoint)
            else:
                checkpoint = gather_to_main(checkpoint)
                if is_main_process():
                    with atomic_write(path) as file:
                        torch.save(checkpoint, file)
                    if name != BEST:
                        self._point_to(path)
        logger.info("saved %s", path)
        return path

    def _write_sharded(self, path: Path, checkpoint: dict[str, Any]) -> None:
        unfinished = path.with_name(path.name + UNFINISHED)
        try:
            write_sharded(unfinished, checkpoint)
        except OSError:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        if self._owns_files():
            if path.exists():  # damaged, or the run was killed before it could point to it
                shutil.rmtree(path)
            sync_folder(unfinished)
            os.replace(unfinished, path)
            self._point_to(path)

    def _owns_files(self) -> bool:
        """Return True in the one process that renames files in the folder."""
        return is_main_process()

    def _point_to(self, path: Path) -> None:
        with atomic_write(self.path / POINTER) as file:  # which also flushes the name of `path`
            file.write(path.name.encode())

    def load_last(self) -> dict[str, Any] | None:
        """Return the last checkpoint that can be read, with its path; None if there is none.

        `load_tensors` completes it.

        Raises:
            ValueError: no checkpoint is readable, or the processes found different ones.
        """
        candidates = self._candidates()
        checkpoint = next(filter(None, map(self._read, candidates)), None)
        if candidates and checkpoint is None:
            names = ", ".join(path.name for path in candidates)
            raise ValueError(f"no checkpoint in {self.path} can be resumed from: {names}")
        step = checkpoint and checkpoint["iteration"]
        if all_reduce_any(step != broadcast_object(step)):
            raise ValueError(
                "the processes found different checkpoints: OUTPUT_DIR must be one folder shared by all"
            )
        return checkpoint

    def _read(self, path: Path) -> dict[str, Any] | None:
        """Return a checkpoint; None after a warning if it cannot be resumed from."""
        path = self._fetched(path)
        try:
            checkpoint = _load(path)
        except Exception as error:  # torch reports damage by many kinds of errors
            logger.warning("%s cannot be read (%s); trying the one before", path, reason_of(error))
            return None
        if isinstance(checkpoint, dict) and all(
            isinstance(checkpoint.get(key), kind) for key, kind in RUN_STATE.items()
        ):
            logger.info("resuming from %s", path)
            return {**checkpoint, PATH: str(path)}
        logger.warning("%s holds weights but no state of a run; trying the one before", path)
        return None

    def _candidates(self) -> list[Path]:
        """Return the checkpoint that the pointer names, then the others, latest step first."""
        pointer = self.path / POINTER
        pointed = pointer.read_text(errors="replace").strip() if pointer.is_file() else None
        found = [name for name in self._names() if name.endswith(SUFFIXES) and name != BEST]
        found.sort(key=lambda name: (name == pointed, self._step(name)), reverse=True)
        return [self.path / name for name in found]

    def _names(self) -> list[str]:
        """Return the names of complete checkpoints."""
        return [path.name for path in self.path.glob(CHECKPOINTS)]

    def _step(self, name: str) -> int:
        """Return a checkpoint's step, which the name of the final one does not contain."""
        try:
            step = step_in(name)
            return int(_load(self.path / name)["iteration"]) if step is None else step
        except Exception:  # as in `_read`
            return -1

    def _fetched(self, path: Path) -> Path:
        """Return `path`, to which the checkpoint has been downloaded if necessary."""
        return path

    def set_earlier_run_aside(self) -> None:
        """Move an earlier run's files except the log to a folder earlier_run_N (main process only)."""
        if not any(True for pattern in RUN_FILES for _ in self.path.glob(pattern)):
            return
        number = 1
        while (aside := self.path / f"earlier_run_{number}").exists():
            number += 1
        aside.mkdir()
        for file in [file for pattern in RUN_FILES + RUN_COMPANIONS for file in self.path.glob(pattern)]:
            shutil.move(file, aside / file.name)
        logger.warning("%s holds an earlier run: moved to %s (--resume would continue it)", self.path, aside)


def acquire_lock(file: Path, folder: str) -> FileLock:
    """Lock `file` until this process ends, however it does. A file system without locks grants every lock.

    Raises:
        OSError: another process holds the lock; the message says that it works in `folder`.
    """
    lock = FileLock(file, timeout=0, is_singleton=True)
    try:
        lock.acquire()
    except Timeout as error:
        raise OSError(f"another run is at work in {folder}: wait for its end, or choose another") from error
    except OSError as error:
        logger.warning("%s cannot be locked: %s", folder, error)
    return lock


def _load(path: Path) -> Any:
    if path.is_dir():
        return read_sharded(path)
    with path.open("rb") as file:
        return load_torch(file, mapped=str(path))


def step_in(name: str) -> int | None:
    """Return the step in a checkpoint's name; None for the final one."""
    number = re.fullmatch(r"model_(\d+)", Path(name).stem)
    return int(number[1]) if number else None
