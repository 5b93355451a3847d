"""Fuzzing of the parsers: broken files must be read or refused in one line, quickly and in little memory.

    python scripts/fuzz.py --minutes 60 --findings output/fuzz      # all targets, in turn
    python scripts/fuzz.py --target config --seed 1                 # one of them, with other random numbers
    python scripts/fuzz.py --replay output/fuzz/config_0_17         # a finding again, with its traceback

A target is a parser and valid inputs for it, folders of files. Mutations know the structure of the files:
they change values in a JSON or YAML, and bytes of a PNG's chunk with its checksum set right.
Each input is read in a process whose time and memory are limited. A finding is an input that is neither read
nor refused by a ValueError or OSError with a short message in one line; its folder is kept, so that it can
become a test. `fuzz_inputs.py` has the mutations and valid inputs, `fuzz_models.py` those of models.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import random
import re
import resource
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from math import ceil
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import fuzz_inputs
import fuzz_models
from fuzz_inputs import Files, mutated

from mask2former.config import load_config
from mask2former.data import DatasetCatalog, MetadataCatalog, register_ytvis_instances
from mask2former.data.checks.record import summarize_record
from mask2former.data.clips import frame_records
from mask2former.data.custom.classes_file import read_classes_file
from mask2former.data.custom.dataset import forget, register_custom_dataset
from mask2former.engine.setup.trained_model import stored_config
from mask2former.evaluation.coco.ap import average_precision
from mask2former.evaluation.common.json_files import load_json
from mask2former.evaluation.panoptic.quality import panoptic_quality
from mask2former.evaluation.video.ap import track_average_precision
from mask2former.utils import messages
from mask2former.utils.image_io import read_header, read_image
from mask2former.utils.label_maps import read_label_map, read_segment_ids
from mask2former.weights.read import read_checkpoint

MAX_SECONDS = 10.0
MAX_BYTES = 2 * 2**30  # that an input may add to the memory of the process
ADDRESS_BYTES = 2 * MAX_BYTES  # of address space, which stops what would take the machine's memory
LONGEST = messages.LONGEST + messages.SLACK  # characters of a message

# --- the parsers ---


def read_dataset(folder: Path, annotations: str) -> None:
    """Read a custom dataset as training does, all its records too."""
    forget("fuzz")
    register_custom_dataset("fuzz", str(folder / "images"), str(folder / annotations))
    metadata = MetadataCatalog.get("fuzz").snapshot()
    metadata.ignore_label = metadata.get("ignore_label", 255)
    for record in DatasetCatalog.get("fuzz"):
        if error := summarize_record(record, metadata).error:
            raise ValueError(error)


def read_instances(folder: Path) -> None:
    """Read COCO instances for training, then score results against them."""
    read_dataset(folder, "set.json")
    results, truth = folder / "results.json", folder / "set.json"
    names = {"gt_file": truth, "results_file": results}
    average_precision(load_json(truth, dict), load_json(results, list), **names)


def read_panoptic(folder: Path) -> None:
    """Read COCO's panoptic format for training, then as ground truth and as a prediction of PQ."""
    read_dataset(folder, "set.json")
    panoptic_quality(folder / "set.json", folder / "set", folder / "set.json", folder / "set")


def read_videos(folder: Path) -> None:
    """Read videos in YouTube-VIS' format for training, then score results against them."""
    forget("fuzz")
    truth, results = folder / "set.json", folder / "results.json"
    register_ytvis_instances("fuzz", {}, truth, folder / "images")
    metadata = MetadataCatalog.get("fuzz").snapshot()
    for record in DatasetCatalog.get("fuzz"):
        for frame in frame_records([record]):
            if error := summarize_record(frame, metadata).error:
                raise ValueError(error)
    names = {"gt_file": truth, "results_file": results}
    track_average_precision(load_json(truth, dict), load_json(results, list), **names)


def read_hub_folder(folder: Path) -> None:
    """Read a folder of transformers, and resolve its config as a Predictor does."""
    stored_config(read_checkpoint(folder))


def reader(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Return a parser of the only file in a folder."""
    return lambda folder: read(next(folder.iterdir()))


class Target(NamedTuple):
    """A parser of a folder, and valid inputs."""

    parse: Callable[[Path], Any]
    seeds: Callable[[], list[Files]]


TARGETS = {
    "instances": Target(read_instances, fuzz_inputs.instance_seeds),
    "videos": Target(read_videos, fuzz_inputs.video_seeds),
    "panoptic": Target(read_panoptic, fuzz_inputs.panoptic_seeds),
    "folders": Target(lambda folder: read_dataset(folder, "set"), fuzz_inputs.folder_seeds),
    "config": Target(lambda folder: load_config(folder / "file.yaml"), fuzz_models.config_seeds),
    "checkpoint": Target(reader(read_checkpoint), fuzz_models.checkpoint_seeds),
    "hub": Target(read_hub_folder, fuzz_models.hub_seeds),
    "header": Target(reader(read_header), fuzz_inputs.image_seeds),
    "image": Target(reader(read_image), fuzz_inputs.image_seeds),
    "labels": Target(reader(read_label_map), fuzz_inputs.image_seeds),
    "segments": Target(reader(read_segment_ids), fuzz_inputs.image_seeds),
    "classes": Target(reader(read_classes_file), fuzz_inputs.classes_seeds),
}


# --- the judgment ---


def complaint(error: BaseException) -> str | None:
    """Return what is wrong with an error, or None for one that a user can be shown."""
    message = str(error)
    ours = type(error).__module__.startswith("mask2former")
    if not ours and type(error) not in (ValueError, FileNotFoundError, OSError):
        return f"{type(error).__name__} is none of our errors"
    if "MemoryError" in message or "RecursionError" in message:
        return "a limit of Python ended it"
    if len(message) > LONGEST:
        return f"the message has {len(message)} characters"
    if "\n" in message:
        return "the message has several lines"
    return None if message else "there is no message"


def judge(target: str, folder: Path) -> str | None:
    """Read an input; return what is wrong with the parser, and where."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        TARGETS[target].parse(folder)
    except BaseException as error:
        if what := complaint(error):
            return f"{what}\n{''.join(traceback.format_exception(error))[-6000:]}"
    used = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return f"it took {used / 1e6:.0f} MB" if used > MAX_BYTES else None


def work(connection: Connection, others: Connection) -> None:
    """Judge the inputs that arrive, in a process whose memory is limited, as long as the parent lives.

    `others` is the parent's end of the connection: it is closed here, so that reading ends with the parent.
    """
    others.close()
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESS_BYTES, size + ADDRESS_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # warnings
    with suppress(EOFError, BrokenPipeError):
        while True:
            target, folder = connection.recv()
            signal.alarm(ceil(2 * MAX_SECONDS))  # ends this process if nobody else does
            connection.send(judge(target, folder))
            signal.alarm(0)


class Worker:
    """A process that reads inputs; it is replaced if it hangs or dies."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("fork").Process(
            target=work, args=(theirs, self._connection), daemon=True
        )
        self._process.start()
        theirs.close()

    def judge(self, target: str, folder: Path) -> str | None:
        """Return what is wrong."""
        self._connection.send((target, folder))
        what = f"it takes more than {MAX_SECONDS:g} s"
        try:
            if self._connection.poll(MAX_SECONDS):
                found: str | None = self._connection.recv()
                return found
        except EOFError:
            self._process.join()
            what = f"the process died with code {self._process.exitcode}"
        self._process.kill()
        self._process.join()
        self._start()
        return what


def write(files: Files, folder: Path) -> Path:
    """Write an input."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def signature(what: str) -> str:
    """Return what findings of one cause have in common: the kind, and the last lines of code in the trace."""
    return what.partition("\n")[0] + "".join(re.findall(r"line \d+, in \w+", what)[-3:])


def fuzz(targets: list[str], minutes: float, seed: int, findings: Path) -> None:
    """Read mutated inputs until the time is over; keep one finding of each kind."""
    seeds = {target: TARGETS[target].seeds() for target in targets}
    worker, end = Worker(), time.monotonic() + 60 * minutes
    counts, seen = dict.fromkeys(targets, 0), set[str]()
    for target in targets:
        for files in seeds[target]:  # the valid inputs must be read
            with tempfile.TemporaryDirectory() as folder:
                if what := worker.judge(target, write(files, Path(folder))):
                    raise SystemExit(f"{target}: a valid input fails: {what}")
    for number, target in enumerate(itertools.cycle(targets)):
        if time.monotonic() > end:
            break
        rng = random.Random(f"{target} {seed} {number}")
        try:
            files = mutated(rng.choice(seeds[target]), rng)
        except Exception:  # a value that the format cannot hold
            continue
        counts[target] += 1
        with tempfile.TemporaryDirectory() as folder:
            what = worker.judge(target, write(files, Path(folder)))
        if what and (kind := f"{target}: {signature(what)}") not in seen:
            seen.add(kind)
            kept = write(files, findings / f"{target}_{seed}_{number}" / "input")
            (kept.parent / "report.txt").write_text(f"{target}\n{what}")
            print(f"{kept.parent}: {what.partition(chr(10))[0]}", flush=True)  # noqa: T201
    print(f"inputs: {counts}; kinds of findings: {len(seen)}")  # noqa: T201


def main() -> None:
    """Fuzz, or replay a finding."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--target", choices=TARGETS, action="append", help="one of the parsers (default: all)"
    )
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--findings", type=Path, default=Path("output/fuzz"), help="folder of findings")
    parser.add_argument(
        "--replay", type=Path, metavar="FINDING", help="read a finding again, and print the error"
    )
    args = parser.parse_args()
    if args.replay:
        target = (args.replay / "report.txt").read_text().partition("\n")[0]
        print(Worker().judge(target, args.replay / "input") or "it is right now")  # noqa: T201
    else:
        fuzz(args.target or [*TARGETS], args.minutes, args.seed, args.findings)


if __name__ == "__main__":
    main()
