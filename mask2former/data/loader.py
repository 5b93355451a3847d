"""Batches: which records come when, and the worker processes that read them.

All randomness of training data hangs on two numbers, the run's seed and a sample's number in the one infinite
stream of samples. Step t trains on samples t*B .. (t+1)*B - 1, in as many pieces as losses accumulate; rank r
of W on the r-th of W equal parts of each piece. A run therefore continues exactly after a resume, and sees
the same with any number of processes and workers.

Shapes: `B` images of a step over all processes, `b` those of this process, `N` records.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import cv2
import numpy as np
from torch.utils.data import DataLoader, Dataset

from mask2former.data.catalog import Metadata, Record
from mask2former.data.errors import DatasetError
from mask2former.data.mapper import TestMapper, TrainMapper, build_test_mapper, build_train_mapper
from mask2former.data.records import DatasetRecords, dataset_records, read_datasets
from mask2former.utils.comm import rank, world_size

logger = logging.getLogger(__name__)
Batch = list[dict[str, Any]]
T = TypeVar("T")


class TrainSamples(Dataset[dict[str, Any]]):
    """`[number, index]` -> the sample of that number, which shows record `index`."""

    def __init__(self, records: Sequence[Record], mapper: TrainMapper, seed: int) -> None:
        self.records = records
        self.mapper = mapper
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        number, index = key
        return self.mapper(self.records[index], sample_seed(self.seed, number))


class TestSamples(Dataset[dict[str, Any]]):
    """`[index]` -> the sample that shows record `index`."""

    __test__ = False  # not a test case, whatever its name suggests to pytest

    def __init__(self, records: Sequence[Record], mapper: TestMapper) -> None:
        self.records = records
        self.mapper = mapper

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.mapper(self.records[index])


class Loader(DataLoader[Any]):
    """Raises what a worker found broken as that worker did; torch puts the worker's traceback around it."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except DatasetError as error:
            raise DatasetError(str(error).rpartition("DatasetError: ")[2].strip()) from error


class TrainBatches:
    """From step `first_step` on, without end: the `(number, index)` of this process's `b` samples."""

    def __init__(
        self,
        *,
        repeats: np.ndarray,
        seed: int,
        total: int,
        first_step: int,
        part: int = 0,
        parts: int = 1,
        pieces: int = 1,
    ) -> None:
        self.repeats = repeats
        self.seed = seed
        self.total = total
        self.first_step = first_step
        self.part = part
        self.parts = parts
        self.pieces = pieces

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        samples = sample_stream(self.repeats, self.seed, self.first_step * self.total)
        while True:
            step = list(itertools.islice(samples, self.total))
            yield share_of_step(step, part=self.part, parts=self.parts, pieces=self.pieces)


def share_of_step(step: Sequence[T], *, part: int, parts: int, pieces: int) -> list[T]:
    """What process `part` of `parts` has of a step whose losses accumulate over `pieces` of it, one by one.

    A piece's loss is divided by its objects, so a piece must show the same images however many processes
    there are. Where a step cannot be divided so, each has one part of it.
    """
    size, rest = divmod(len(step), parts * pieces)
    if rest:
        own = len(step) // parts
        return [*step[part * own : (part + 1) * own]]
    firsts = range(part * size, len(step), parts * size)
    return [sample for first in firsts for sample in step[first : first + size]]


def sample_stream(repeats: np.ndarray, seed: int, first: int = 0) -> Iterator[tuple[int, int]]:
    """The samples `(number, index)` from `first` on: epoch after epoch, each shuffled by its own number."""
    start = 0  # the number of the epoch's first sample
    for epoch in itertools.count():
        order = epoch_order(repeats, seed, epoch)
        for number in range(max(first, start), start + len(order)):
            yield number, int(order[number - start])
        start += len(order)


def epoch_order(repeats: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Record i stands `repeats[i]` times in an epoch, the fraction being a chance; in random order."""
    rng = np.random.default_rng([seed, epoch])
    times = np.floor(repeats + rng.random(len(repeats))).astype(int)
    return rng.permutation(np.repeat(np.arange(len(repeats)), times))


def sample_seed(seed: int, number: int) -> int:
    """A number below 2^63 for the sample's augmentation and the random points of its losses."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def build_train_loader(cfg: Any, first_step: int = 0, seed: int | None = None) -> Loader:
    """This process's batches of DATASETS.TRAIN, without end, from step `first_step` on.

    Args:
        cfg: the config.
        first_step: 0, or after a resume the number of steps done.
        seed: the run's seed, the same on all processes; None takes cfg.SEED, and where that is negative draws
            one (a single process only).

    Raises:
        DatasetError: a dataset is unknown or broken, or no image is left to train on.
        ValueError: SOLVER.IMS_PER_BATCH cannot be shared out evenly.
    """
    trained, metadata = training_records(cfg)
    total, parts = cfg.SOLVER.IMS_PER_BATCH, world_size()
    if total % parts or total <= 0:
        raise ValueError(f"SOLVER.IMS_PER_BATCH is {total}: {parts} processes cannot share that evenly")
    seed = _run_seed(cfg) if seed is None else seed
    batches = TrainBatches(
        repeats=_repeats(cfg, trained),
        seed=seed,
        total=total,
        first_step=first_step,
        part=rank(),
        parts=parts,
        pieces=cfg.SOLVER.ACCUMULATION_STEPS,
    )
    samples = TrainSamples(trained.records, build_train_mapper(cfg, metadata), seed)
    return _loader(cfg, samples, batches)


def build_test_loader(cfg: Any, dataset_name: str, batch_size: int = 1) -> Loader:
    """This process's part of the dataset, each image once, in order; all processes must ask together."""
    records = dataset_records(dataset_name).records
    bounds = np.linspace(0, len(records), world_size() + 1).astype(int)
    own = records.chosen(slice(*bounds[rank() : rank() + 2]))
    numbers = range(len(own))
    batches = [list(numbers[i : i + batch_size]) for i in range(0, len(own), batch_size)]
    return _loader(cfg, TestSamples(own, build_test_mapper(cfg)), batches)


def training_records(cfg: Any) -> tuple[DatasetRecords, Metadata]:
    """The records of DATASETS.TRAIN that are trained on, and the metadata of the first dataset.

    All processes must ask together.

    Raises:
        DatasetError: a dataset is unknown or broken, or no image is left.
    """
    found, metadata = read_datasets(cfg.DATASETS.TRAIN)
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        found = without_empty(found)
    if not found.records:
        raise DatasetError(
            f"nothing to train on: {', '.join(cfg.DATASETS.TRAIN) or 'DATASETS.TRAIN is empty'}"
        )
    return found, metadata


def images_an_epoch(cfg: Any) -> float:
    """How many images an epoch of training shows on average; those that are repeated count as often.

    Raises:
        DatasetError, ValueError: as `training_records`; or an unknown DATALOADER.SAMPLER_TRAIN.
    """
    trained, _ = training_records(cfg)
    return float(_repeats(cfg, trained).sum())


def without_empty(found: DatasetRecords) -> DatasetRecords:
    """The records with an instance that is no crowd; those that know no `annotations` are all kept."""
    if left_out := int(found.empty.sum()):
        logger.info("left out %d of %d images, which show no instance", left_out, len(found.records))
    return found.chosen(np.flatnonzero(~found.empty))


def repeat_factors(shown: Sequence[Sequence[int]], threshold: float, sqrt: bool = True) -> np.ndarray:
    """How often each record (N,) stands in an epoch: more than once if it shows a rare category.

    A category on a share f of the images wants max(1, threshold / f), or the square root of that; an image
    goes by its most wanting category (LVIS, Gupta et al., 2019, appendix B).

    Args:
        shown: of each of N records its categories, each once.
        threshold: the share below which a category is rare.
        sqrt: whether to take the root.
    """
    present = list(shown)
    images = Counter(itertools.chain.from_iterable(present))
    power = 0.5 if sqrt else 1.0
    wanted = {c: max(1.0, (threshold * len(present) / count) ** power) for c, count in images.items()}
    return np.array([max((wanted[c] for c in categories), default=1.0) for categories in present])


def _repeats(cfg: Any, trained: DatasetRecords) -> np.ndarray:
    source = cfg.DATALOADER
    samplers: dict[str, Callable[[], np.ndarray]] = {
        "TrainingSampler": lambda: np.ones(len(trained.records)),
        "RepeatFactorTrainingSampler": lambda: repeat_factors(
            trained.shown, source.REPEAT_THRESHOLD, source.REPEAT_SQRT
        ),
    }
    if source.SAMPLER_TRAIN not in samplers:
        known = ", ".join(samplers)
        raise ValueError(f"DATALOADER.SAMPLER_TRAIN is '{source.SAMPLER_TRAIN}'; it can be one of {known}")
    return samplers[source.SAMPLER_TRAIN]()


def _run_seed(cfg: Any) -> int:
    if cfg.SEED >= 0:
        return cfg.SEED
    if world_size() > 1:
        raise ValueError("SEED is negative: several processes need one seed, passed as `seed`")
    return int(np.random.SeedSequence().generate_state(1)[0])


def _loader(cfg: Any, samples: Dataset[Any], batches: Any) -> Loader:
    return Loader(
        samples,
        batch_sampler=batches,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=_as_list,
        worker_init_fn=_begin_worker,
    )


def _as_list(samples: Batch) -> Batch:
    return samples


def _begin_worker(worker: int) -> None:
    cv2.setNumThreads(0)  # the workers themselves are the parallelism
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_parent_says, daemon=True).start()


def _end_when_the_parent_says() -> None:
    """A scheduler sends SIGTERM to every process, but training wants batches until it has ended by itself."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
