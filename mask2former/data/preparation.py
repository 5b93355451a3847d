"""What the scripts in datasets/ share: outputs that are whole or absent, made by several processes.

A file is written under another name and then renamed; a folder is filled beside its place, as
NAME.unfinished, and then renamed. So what lies in its place is complete and is never made twice, and what an
interrupted run finished is kept.
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
from PIL import Image
from tqdm import tqdm

from mask2former.data.datasets.files import ROOT_VARIABLE, datasets_root
from mask2former.data.errors import DatasetError
from mask2former.utils.atomic_files import UNFINISHED, atomic_path

logger = logging.getLogger(__name__)
Job = TypeVar("Job")
Result = TypeVar("Result")
Make = Callable[[Job, Path], Result]  # writes the file at the path; what it returns goes into a JSON, if any

CHUNK = 8  # jobs that a process fetches at once


def argument_parser(description: str | None) -> ArgumentParser:
    """The options that all scripts have; `description` is the script's docstring."""
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    root = datasets_root()
    parser.add_argument(
        "--root", type=Path, default=root, help=f"the folder of all datasets (default: {root})"
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)"
    )
    return parser


def run(
    parser: ArgumentParser, prepare: Callable[[Namespace], None], arguments: Sequence[str] | None
) -> None:
    """Parse `arguments`, or the command line, and prepare; what is wrong ends it with one line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parsed = parser.parse_args(arguments)
    if parsed.workers < 1:
        parser.error(f"--workers {parsed.workers}: at least 1 is needed")
    parsed.root = parsed.root.expanduser()
    try:
        prepare(parsed)
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted; the next run goes on from here\n")
    except BrokenProcessPool:
        parser.exit(1, f"{parser.prog}: a process was killed, perhaps for want of memory: try --workers 1\n")
    except (ValueError, OSError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


def present(paths: Mapping[str, Path]) -> list[str]:
    """The splits whose path exists; others are told of.

    Raises:
        DatasetError: none of them exists.
    """
    there = [split for split, path in paths.items() if path.exists()]
    if not there:
        _require(next(iter(paths.values())))
    for split, path in paths.items():
        if split not in there:
            logger.info("%s is not there: %s is left out", path, split)
    return there


def files_in(folder: Path, pattern: str) -> list[Path]:
    """The files whose path below `folder` matches, sorted; hidden ones are none.

    Raises:
        DatasetError: there is no such folder, or no such file.
    """
    found = sorted(path for path in _require(folder).glob(pattern) if not path.name.startswith("."))
    if not found:
        raise DatasetError(f"{folder}: there are no files {pattern}")
    return found


def parallel(work: Callable[[Job], Result], jobs: Sequence[Job], *, workers: int, what: str) -> list[Result]:
    """`work` done on each job, in the order of the jobs, with a progress bar.

    The first error ends it. `work` and the jobs travel to other processes, so they must be picklable.
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
    """Write a JSON that is whole or absent."""
    with atomic_path(path) as unfinished:
        unfinished.write_text(json.dumps(content), encoding="utf-8")


def save_image(path: Path, image: np.ndarray[Any, Any]) -> None:
    """Write (H, W) uint8 or uint16, or (H, W, 3) uint8, in the format that the suffix tells."""
    Image.fromarray(image).save(path)


def extent(mask: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Of a mask (H, W) with some pixels: its area, and its box as XYWH, in pixels."""
    rows, columns = np.flatnonzero(mask.any(1)).tolist(), np.flatnonzero(mask.any(0)).tolist()
    box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
    return {"area": int(mask.sum()), "bbox": box}


def make_files(jobs: Mapping[Path, Job], make: Make[Job, Any], *, workers: int, what: str) -> None:
    """`make(job, path)` of each path that does not exist yet."""
    missing = {path: job for path, job in jobs.items() if not path.exists()}
    _tell(what, len(jobs), len(jobs) - len(missing))
    parallel(partial(_make_file, make), [*missing.items()], workers=workers, what=what)


def make_folder(folder: Path, jobs: Mapping[str, Job], make: Make[Job, Any], *, workers: int) -> None:
    """The folder with `make(job, path)` of each file name; one that has them all is left as it is."""
    if _complete(folder, jobs):
        _tell(folder, len(jobs), len(jobs))
        return
    unfinished = _begin(folder)
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
    """The same with a JSON, `content` of all that `make` returned in the order of the jobs.

    The JSON is written last. Where it is missing all files are made again, as only that gives its rows.
    """
    if json_file.exists() and _complete(folder, jobs):
        _tell(json_file, len(jobs), len(jobs))
        return
    json_file.unlink(missing_ok=True)
    unfinished = _begin(folder)
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


def _begin(folder: Path) -> Path:
    """The folder to fill. One that lies in its place but lacks files, say of another tool, is filled up."""
    unfinished = folder.with_name(folder.name + UNFINISHED)
    if folder.is_dir():
        shutil.rmtree(unfinished, ignore_errors=True)
        folder.rename(unfinished)
    unfinished.mkdir(parents=True, exist_ok=True)
    return unfinished


def _tell(what: Path | str, count: int, done: int) -> None:
    if done:
        logger.info("%s: %d of %d files are there already", what, done, count)


def _follow_parent() -> None:
    """In a worker: the parent handles Ctrl-C, and if it is killed this process ends too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
