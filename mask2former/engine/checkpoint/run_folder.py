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
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from mask2former.engine.checkpoint.lock import hold
from mask2former.engine.checkpoint.sharded import read_run, write_parts
from mask2former.utils.atomic_files import UNFINISHED, atomic_write, sync_folder
from mask2former.utils.comm import all_reduce_any, broadcast_object, is_main_process

logger = logging.getLogger(__name__)

POINTER = "last_checkpoint"
FINAL = "model_final.pth"
SUFFIX, PARTS_SUFFIX = ".pth", ".parts"  # of a file, and of a folder that several processes write to
LOCK = ".lock"
UNREADABLE = (RuntimeError, EOFError, OSError, ValueError, LookupError, pickle.UnpicklingError)
RUN_STATE = {"model", "optimizer", "iteration", "window", "scaler", "seed"}
RUN_FILES = ("model_*.pth", "model_*.parts", POINTER, "metrics.json", "events.out.tfevents.*")
RUN_COMPANIONS = ("config.yaml", "images", "inference")  # by which alone a run is not known


class RunFolder:
    """The checkpoints in a run's output folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __str__(self) -> str:
        return str(self.path)

    def begin(self, training: bool) -> None:
        """Every process calls it before it reads or writes; training has the folder to itself.

        Raises:
            OSError: another run trains there, or it cannot be written to.
        """
        if training and is_main_process():
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = hold(self.path / LOCK, str(self.path))
            self.remove_unfinished()

    def publish(self) -> None:
        """Every process calls it when a checkpoint has been saved."""

    def end(self, failed: bool = False) -> None:
        """Every process calls it after the run."""

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
        try:
            write_parts(unfinished, content)
        except OSError:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        if self._completes_parts():
            if path.exists():  # damaged, or the run was killed before it could point there
                shutil.rmtree(path)
            sync_folder(unfinished)
            os.replace(unfinished, path)
            sync_folder(self.path)
            self._point_to(path.name)
        return path

    def _completes_parts(self) -> bool:
        """Whether this process gives a folder, to which several have written, its name."""
        return is_main_process()

    def _point_to(self, name: str) -> None:
        with atomic_write(self.path / POINTER) as file:
            file.write(name.encode())

    def load_last(self) -> dict[str, Any] | None:
        """The last checkpoint that can be read; None if there is none. `with_tensors` completes a folder's.

        Raises:
            ValueError: there are checkpoints, but not one is readable; or processes found different ones.
        """
        content = self._last()
        step = None if content is None else content["iteration"]
        if all_reduce_any(step != broadcast_object(step)):
            raise ValueError(
                "the processes found different checkpoints: OUTPUT_DIR must be one folder shared by all"
            )
        return content

    def _last(self) -> dict[str, Any] | None:
        candidates = self._candidates()
        for path in candidates:
            self._bring(path)
            try:
                content = _read(path)
            except UNREADABLE as error:
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
        names = sorted(self._checkpoints(), key=self._steps, reverse=True)
        found = [self.path / name for name in names if name.endswith((SUFFIX, PARTS_SUFFIX))]
        pointer = self.path / POINTER
        named = self.path / pointer.read_text().strip() if pointer.is_file() else None
        if named in found:
            found.remove(named)
            found.insert(0, named)
        return found

    def _checkpoints(self) -> list[str]:
        """The names of checkpoints that were written whole."""
        return [path.name for path in self.path.glob("model_*")]

    def _steps(self, name: str) -> int:
        """Steps behind a checkpoint, which its name tells, or of the final one its content."""
        try:
            step = step_in(name)
            return int(_read(self.path / name)["iteration"]) if step is None else step
        except UNREADABLE:
            return -1

    def _bring(self, path: Path) -> None:
        """Have a checkpoint at `path`, where a folder that others see has it."""

    def _found(self, patterns: Iterable[str]) -> list[Path]:
        return [file for pattern in patterns for file in self.path.glob(pattern)]

    def remove_unfinished(self) -> None:
        """Delete what a killed process left half-written."""
        for path in self.path.glob(f"*{UNFINISHED}"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def set_earlier_run_aside(self) -> None:
        """Move an earlier run's files, but for the log, to a folder of their own, so that runs do not mix."""
        if not self._found(RUN_FILES):
            return
        number = 1
        while (aside := self.path / f"earlier_run_{number}").exists():
            number += 1
        aside.mkdir()
        for file in self._found((*RUN_FILES, *RUN_COMPANIONS)):
            shutil.move(file, aside / file.name)
        logger.warning("%s holds an earlier run: moved to %s (--resume would continue it)", self.path, aside)


def _read(path: Path) -> Any:
    return (
        read_run(path)
        if path.is_dir()
        else torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    )


def step_in(name: str) -> int | None:
    """The step in a checkpoint's name; None in that of the final one."""
    number = re.fullmatch(r"model_(\d+)", Path(name).stem)
    return int(number[1]) if number else None
