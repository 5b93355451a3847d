"""Helpers of the scripts in datasets/: outputs that appear complete or not at all, made by several processes.

Files and folders are written under another name (NAME.unfinished for a folder) and then renamed. So a file
under its own name is complete and is not made again, and the finished files of an interrupted run are kept.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import threading
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from mask2former.data.datasets.files import ROOT_VARIABLE, datasets_root
from mask2former.data.errors import DatasetError
from mask2former.utils.atomic_files import UNFINISHED, atomic_path
from mask2former.utils.messages import MessageFormatter, legible
from mask2former.utils.output import Parser, tolerant_output

logger = logging.getLogger(__name__)
Job = TypeVar("Job")
Result = TypeVar("Result")
Make = Callable[[Job, Path], Result]  # writes the file at the path

CHUNK = 8  # jobs that a process takes at once


def argument_parser(description: str | None) -> ArgumentParser:
    """Return a parser with the options of all scripts; `description` is the script's docstring."""
    parser = Parser(description=description, formatter_class=RawDescriptionHelpFormatter)
    root = datasets_root()
    parser.add_argument(
        "--root", type=Path, default=root, help=f"the folder of all datasets (default: {root})"
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)"
    )
    return parser


@tolerant_output()
def run(
    parser: ArgumentParser, prepare: Callable[[Namespace], None], arguments: Sequence[str] | None
) -> None:
    """Parse `arguments`, or the command line, and prepare; errors exit with one line."""
    console = logging.StreamHandler()
    console.setFormatter(MessageFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[console])
    parsed = parser.parse_args(arguments)
    if parsed.workers < 1:
        parser.error(f"--workers {parsed.workers}: at least 1 is needed")
    parsed.root = parsed.root.expanduser()
    try:
        prepare(parsed)
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted; the next run continues\n")
    except BrokenProcessPool:
        parser.exit(1, f"{parser.prog}: a process was killed, perhaps for lack of memory: try --workers 1\n")
    except (ValueError, OSError) as error:
        parser.exit(1, f"{parser.prog}: {legible(error)}\n")


def present(paths: Mapping[str, Path]) -> list[str]:
    """Return the splits whose path exists, and log the others.

    Raises:
        DatasetError: no path exists.
    """
    found = [split for split, path in paths.items() if path.exists()]
    if not found:
        _require(next(iter(paths.values())))
    for split, path in paths.items():
        if split not in found:
            logger.info("%s does not exist: %s is left out", path, split)
    return found


def files_in(folder: Path, pattern: str) -> list[Path]:
    """Return the files, sorted, whose path below `folder` matches, without hidden files and folders.

    Raises:
        DatasetError: the folder does not exist, or no file matches.
    """
    found = [path.relative_to(folder) for path in _require(folder).glob(pattern)]
    found = sorted(folder / path for path in found if not any(part.startswith(".") for part in path.parts))
    if not found:
        raise DatasetError(f"{folder}: there are no files {pattern}")
    return found


def parallel(work: Callable[[Job], Result], jobs: Sequence[Job], *, workers: int, what: str) -> list[Result]:
    """Return `work(job)` for each job, in order, with a progress bar; `work` and the jobs must be picklable.

    The first error ends the work.
    """
    progress = partial(tqdm, total=len(jobs), desc=what, unit="file", disable=not jobs)
    if workers == 1 or len(jobs) <= CHUNK:
        return list(progress(map(work, jobs)))
    with ProcessPoolExecutor(min(workers, len(jobs)), initializer=_follow_parent) as pool:
        try:
            return list(progress(pool.map(work, jobs, chunksize=CHUNK)))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    with atomic_path(path) as unfinished:
        unfinished.write_text(json.dumps(content), encoding="utf-8")


def extent(mask: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Return the area and the XYWH box of a mask (H, W) that is not empty, in pixels."""
    rows, columns = np.flatnonzero(mask.any(1)).tolist(), np.flatnonzero(mask.any(0)).tolist()
    box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
    return {"area": int(mask.sum()), "bbox": box}


def make_files(jobs: Mapping[Path, Job], make: Make[Job, Any], *, workers: int, what: str) -> None:
    """Make each file that does not exist yet, by `make(job, path)`."""
    missing = {path: job for path, job in jobs.items() if not path.exists()}
    _log_existing(what, len(jobs), len(jobs) - len(missing))
    parallel(partial(_make_file, make), [*missing.items()], workers=workers, what=what)


def make_folder(folder: Path, jobs: Mapping[str, Job], make: Make[Job, Any], *, workers: int) -> None:
    """Make a folder of files, by `make(job, path)` for each name; one that has all of them is kept."""
    if _complete(folder, jobs):
        _log_existing(folder, len(jobs), len(jobs))
        return
    unfinished = _unfinished_folder(folder)
    targets = {unfinished / name: job for name, job in jobs.items()}
    make_files(targets, make, workers=workers, what=str(folder))
    unfinished.rename(folder)


def make_annotations(
    json_file: Path,
    folder: Path,
    jobs: Mapping[str, Job],
    make: Make[Job, Result],
    content: Callable[[list[Result]], Any],
    *,
    workers: int,
) -> None:
    """Make a folder of files, and a JSON of `content(results)`, where `results` are those of `make` in order.

    The JSON is written last. If it is missing, all files are made again, because that gives the results.
    """
    if json_file.exists() and _complete(folder, jobs):
        _log_existing(json_file, len(jobs), len(jobs))
        return
    json_file.unlink(missing_ok=True)
    unfinished = _unfinished_folder(folder)
    todo = [(unfinished / name, job) for name, job in jobs.items()]
    rows = parallel(partial(_make_file, make), todo, workers=workers, what=str(folder))
    unfinished.rename(folder)
    write_json(json_file, content(rows))


def _require(path: Path) -> Path:
    if not path.exists():
        raise DatasetError(
            f"{path.absolute()} does not exist. --root, or ${ROOT_VARIABLE}, is the folder of all datasets; "
            "layouts, and where to download what, are described in datasets/README.md"
        )
    return path


def _make_file(make: Make[Job, Result], item: tuple[Path, Job]) -> Result:
    path, job = item
    with atomic_path(path) as unfinished:
        return make(job, unfinished)


def _complete(folder: Path, names: Mapping[str, Any]) -> bool:
    return folder.is_dir() and names.keys() <= set(os.listdir(folder))


def _unfinished_folder(folder: Path) -> Path:
    """Return the folder to fill; an existing one that lacks files, say of another tool, is renamed to it."""
    unfinished = folder.with_name(folder.name + UNFINISHED)
    if folder.is_dir():
        shutil.rmtree(unfinished, ignore_errors=True)
        folder.rename(unfinished)
    unfinished.mkdir(parents=True, exist_ok=True)
    return unfinished


def _log_existing(what: Path | str, count: int, done: int) -> None:
    if done:
        logger.info("%s: %d of %d files exist already", what, done, count)


def _follow_parent() -> None:
    """Ignore Ctrl-C in a worker, which the parent handles, and exit if the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
