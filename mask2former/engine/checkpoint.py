"""Saving a run and finding it again, whenever the process may have been killed.

A file appears under its name only when it is complete and on disk: it is written beside its place, under
another name, and moved there; so is a folder, to which several processes write. In it are tensors, numbers
and strings only: reading it cannot run code.
"""

import logging
import os
import pickle
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from mask2former.distributed import is_main_process
from mask2former.engine.checkpoint_parts import read_run, write_parts

logger = logging.getLogger(__name__)

POINTER = "last_checkpoint"
FINAL = "model_final.pth"
UNFINISHED = ".unfinished"
SUFFIX, PARTS_SUFFIX = ".pth", ".parts"  # of a file, and of a folder that several processes write to
RUN_STATE = {"model", "optimizer", "iteration", "window", "scaler", "seed"}
RUN_FILES = ("model_*.pth", "model_*.parts", POINTER, "metrics.json", "events.out.tfevents.*")


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A file to write `path` into; `path` changes only when the block ends well, and then at once."""
    unfinished = path.with_name(path.name + UNFINISHED)
    with open(unfinished, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    """Let new names reach the disk too, where that can be asked for."""
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(folder)
        os.close(folder)


class RunFolder:
    """The checkpoints in a run's output folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def save(self, name: str, content: dict[str, Any]) -> Path:
        """Write the checkpoint `name`, then make it the one to resume from."""
        path = self.path / name
        with atomic_write(path) as file:
            torch.save(content, file)
        self._point_to(name)
        return path

    def save_parts(self, name: str, content: dict[str, Any]) -> Path:
        """The same as a folder, `name` with another suffix; every process writes its part of the tensors."""
        path = (self.path / name).with_suffix(PARTS_SUFFIX)
        unfinished = path.with_name(path.name + UNFINISHED)
        write_parts(unfinished, content)
        if is_main_process():
            if path.exists():  # damaged, or the run was killed before it could point there
                shutil.rmtree(path)
            _sync_folder(unfinished)
            os.replace(unfinished, path)
            _sync_folder(self.path)
            self._point_to(path.name)
        return path

    def _point_to(self, name: str) -> None:
        with atomic_write(self.path / POINTER) as file:
            file.write(name.encode())

    def load_last(self) -> dict[str, Any] | None:
        """The last checkpoint that can be read; None if there is none. `with_tensors` completes a folder's.

        Raises:
            ValueError: there are checkpoints, but not one is readable.
        """
        candidates = self._candidates()
        for path in candidates:
            try:
                content = _read(path)
            except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
                reason = str(error).split("\n")[0]
                logger.warning("%s cannot be read (%s); trying the one before", path, reason)
                continue
            if isinstance(content, dict) and content.keys() >= RUN_STATE:
                logger.info("resuming from %s", path)
                return content
            logger.warning("%s holds weights but no state of a run; trying the one before", path)
        if candidates:
            names = ", ".join(path.name for path in candidates)
            raise ValueError(f"no checkpoint in {self.path} can be resumed from: {names}")
        return None

    def _candidates(self) -> list[Path]:
        """The checkpoint that the pointer names, then the others, latest step first."""
        files = [file for suffix in (SUFFIX, PARTS_SUFFIX) for file in self.path.glob(f"model_*{suffix}")]
        found = sorted(files, key=_age, reverse=True)
        pointer = self.path / POINTER
        named = self.path / pointer.read_text().strip() if pointer.is_file() else None
        if named in found:
            found.remove(named)
            found.insert(0, named)
        return found

    def remove_unfinished(self) -> None:
        """Delete what a killed process left half-written."""
        for path in self.path.glob(f"*{UNFINISHED}"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def set_earlier_run_aside(self) -> None:
        """Move an earlier run's checkpoints and curves to a folder of their own, so that runs do not mix."""
        files = [file for pattern in RUN_FILES for file in self.path.glob(pattern)]
        if not files:
            return
        number = 1
        while (aside := self.path / f"earlier_run_{number}").exists():
            number += 1
        aside.mkdir()
        for file in files:
            shutil.move(file, aside / file.name)
        logger.warning("%s holds an earlier run: moved to %s (--resume would continue it)", self.path, aside)


def _read(path: Path) -> Any:
    return read_run(path) if path.is_dir() else torch.load(path, map_location="cpu", weights_only=True)


def _age(path: Path) -> float:
    """Steps behind a checkpoint, by its name; the final one has the most."""
    number = re.fullmatch(r"model_(\d+)", path.stem)
    return int(number[1]) if number else float("inf")
