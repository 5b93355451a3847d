"""Loaders of training and test batches: which records come when, and the worker processes that read them.

All randomness of training data depends on two numbers: the run's seed, and a sample's number in one infinite
stream of samples. Step t trains on samples t*B .. (t+1)*B - 1, divided into micro-batches if gradients
accumulate; each process takes an equal share of every micro-batch. So a resumed run continues exactly, and
the samples of a step do not depend on the number of processes and workers.

Shapes: `B` images of a step over all processes, `b` those of this process, `N` records.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import cv2
import numpy as np
from torch.utils.data import DataLoader, Dataset

from mask2former.data.augmentation import choice
from mask2former.data.catalog import Metadata, MetadataCatalog, Record
from mask2former.data.clips import ClipTestMapper, build_clip_train_mapper, holds_videos
from mask2former.data.copy_paste import with_copy_paste
from mask2former.data.errors import DatasetError
from mask2former.data.instance_annotations import with_instances
from mask2former.data.mapper import build_test_mapper, build_train_mapper
from mask2former.data.packing import PackedBatch, pack, unpack
from mask2former.data.records import Datasets, LoadedDataset
from mask2former.data.tasks import draws_instances
from mask2former.utils.comm import rank, world_size
from mask2former.utils.image_io import set_pixel_limit

logger = logging.getLogger(__name__)

IMAGES_AT_ONCE = 2  # of a process: the published recipes have 16 images a step on 8 GPUs
Batch = list[dict[str, Any]]
T = TypeVar("T")


class Samples(Dataset[dict[str, Any] | DatasetError]):
    """Samples that a mapper makes of records; a key is a record's index, and in training a seed.

    A `DatasetError` is returned, not raised: torch would put a worker's traceback into its message.
    """

    def __init__(self, records: Sequence[Record], mapper: Callable[..., dict[str, Any]]) -> None:
        self.records = records
        self.mapper = mapper

    def __getitem__(self, key: tuple[int, ...]) -> dict[str, Any] | DatasetError:
        index, *seed = key
        try:
            return self.mapper(self.records[index], *seed)
        except DatasetError as error:
            return error


class Loader(DataLoader[Any]):
    """A `DataLoader` of `Samples` that unpacks batches, and raises the `DatasetError` that a sample is."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for sent in super().__iter__():
            batch = unpack(sent) if isinstance(sent, PackedBatch) else sent
            if error := next((sample for sample in batch if isinstance(sample, DatasetError)), None):
                raise error
            yield batch


@dataclass(frozen=True)
class TrainBatches:
    """Infinite batch sampler: for each step from `first_step` on, b keys `(record index, seed)`."""

    repeats: np.ndarray
    seed: int
    batch_size: int
    first_step: int
    rank: int = 0
    world_size: int = 1
    micro_batches: int = 1

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        samples = sample_stream(self.repeats, self.seed, self.first_step * self.batch_size)
        while True:
            step = list(itertools.islice(samples, self.batch_size))
            share = share_of_step(step, self.rank, self.world_size, self.micro_batches)
            yield [(index, sample_seed(self.seed, number)) for number, index in share]


def share_of_step(step: Sequence[T], rank: int, world_size: int, micro_batches: int) -> list[T]:
    """Return the samples of process `rank` of a step, one micro-batch after the other.

    The loss of a micro-batch is normalized by its objects. So a micro-batch must hold the same images with
    any number of processes: each is divided among the processes. If the sizes do not allow that, each process
    gets one contiguous part of the step.
    """
    size, rest = divmod(len(step), world_size * micro_batches)
    if rest:
        share = len(step) // world_size
        return [*step[rank * share : (rank + 1) * share]]
    starts = range(rank * size, len(step), world_size * size)
    return [sample for start in starts for sample in step[start : start + size]]


def sample_stream(repeats: np.ndarray, seed: int, first: int = 0) -> Iterator[tuple[int, int]]:
    """Yield samples `(number, record index)` from number `first` on: epoch after epoch, each shuffled."""
    start = 0  # number of the epoch's first sample
    for epoch in itertools.count():
        order = epoch_order(repeats, seed, epoch)
        for number in range(max(first, start), start + len(order)):
            yield number, int(order[number - start])
        start += len(order)


def epoch_order(repeats: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return the record indices of an epoch in random order.

    Record i occurs floor(repeats[i]) times, and once more with the probability of the fraction.
    """
    rng = np.random.default_rng([seed, epoch])
    times = np.floor(repeats + rng.random(len(repeats))).astype(int)
    return rng.permutation(np.repeat(np.arange(len(repeats)), times))


def sample_seed(seed: int, number: int) -> int:
    """Return the seed, below 2^63, of a sample's augmentation and of the random points of its losses."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def accumulation_steps(solver: Any, processes: int) -> int:
    """Return SOLVER.ACCUMULATION_STEPS; "auto" is the fewest even parts of at most IMAGES_AT_ONCE images."""
    if solver.ACCUMULATION_STEPS != "auto":
        return solver.ACCUMULATION_STEPS
    share = max(1, solver.IMS_PER_BATCH // processes)
    return next(n for n in range(1, share + 1) if share % n == 0 and share // n <= IMAGES_AT_ONCE)


def build_train_loader(
    cfg: Any, first_step: int = 0, seed: int | None = None, datasets: Datasets | None = None
) -> Loader:
    """Return this process's infinite batches of DATASETS.TRAIN, beginning at step `first_step`.

    Args:
        first_step: 0, or the number of finished steps of a resumed run.
        seed: the run's seed, the same in all processes; None takes cfg.SEED, or a random one if that is
            negative (with a single process only).
        datasets: the datasets that the run has read so far.

    Raises:
        DatasetError: a dataset is unknown or broken, or no image is left to train on.
        ValueError: SOLVER.IMS_PER_BATCH is no multiple of the number of processes.
    """
    trained = load_training_data(cfg, datasets or Datasets())
    total, processes = cfg.SOLVER.IMS_PER_BATCH, world_size()
    if total % processes or total <= 0:
        raise ValueError(f"SOLVER.IMS_PER_BATCH is {total}: {processes} processes cannot share that evenly")
    if seed is None:
        if cfg.SEED < 0 and processes > 1:
            raise ValueError("SEED is negative: several processes need one seed, passed as `seed`")
        seed = cfg.SEED if cfg.SEED >= 0 else int(np.random.SeedSequence().generate_state(1)[0])
    batches = TrainBatches(
        repeats=_repeats(cfg, trained),
        seed=seed,
        batch_size=total,
        first_step=first_step,
        rank=rank(),
        world_size=processes,
        micro_batches=accumulation_steps(cfg.SOLVER, processes),
    )
    return _loader(
        cfg, Samples(trained.records, _train_mapper(cfg, trained.metadata, trained.records)), batches
    )


def _train_mapper(cfg: Any, metadata: Metadata, records: Sequence[Record]) -> Callable[..., dict[str, Any]]:
    """Return the mapper of the training datasets, which hold videos or images.

    Raises:
        DatasetError: some hold videos, others images.
        ValueError: they hold videos, and SOLVER.TASKS are set; or as `build_train_mapper` and
            `with_copy_paste`.
    """
    of_videos = [name for name in cfg.DATASETS.TRAIN if holds_videos(MetadataCatalog.get(name))]
    if of_videos and len(of_videos) < len(cfg.DATASETS.TRAIN):
        others = sorted({*cfg.DATASETS.TRAIN} - {*of_videos})
        raise DatasetError(
            f"'{of_videos[0]}' holds videos, '{others[0]}' images; DATASETS.TRAIN takes one kind at a time"
        )
    if of_videos and cfg.SOLVER.TASKS:
        raise ValueError(
            f"'{of_videos[0]}' holds videos, but SOLVER.TASKS are for images: set SOLVER.TASKS to ()"
        )
    build = build_clip_train_mapper if of_videos else build_train_mapper
    return with_copy_paste(cfg, build(cfg, metadata), records)


def build_test_loader(
    cfg: Any, dataset_name: str, batch_size: int = 1, datasets: Datasets | None = None
) -> Loader:
    """Return this process's part of a dataset, each image once, in order.

    All processes must call this together. `datasets` are those that the run has read so far.
    """
    records, metadata, *_ = (datasets or Datasets()).load(dataset_name)
    bounds = np.linspace(0, len(records), world_size() + 1).astype(int)
    share = records.select(slice(*bounds[rank() : rank() + 2]))
    keys = [(index,) for index in range(len(share))]
    batches = [keys[i : i + batch_size] for i in range(0, len(keys), batch_size)]
    mapper = build_test_mapper(cfg)
    return _loader(
        cfg, Samples(share, ClipTestMapper(frames=mapper) if holds_videos(metadata) else mapper), batches
    )


def load_training_data(cfg: Any, datasets: Datasets) -> LoadedDataset:
    """Return DATASETS.TRAIN in a row, without images that have no object if the config filters those.

    Images whose record has no `annotations` are kept. If SOLVER.TASKS ask for instances, panoptic records get
    those of their dataset. All processes must call this together.

    Raises:
        DatasetError: a dataset is unknown or broken, or no image is left.
    """
    if draws_instances(cfg.SOLVER):
        for name in cfg.DATASETS.TRAIN:
            if datasets.load(name).metadata.get("json_file") is not None:
                datasets.complete(name, with_instances)
    found = datasets.load_concatenated(cfg.DATASETS.TRAIN)
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS and found.is_empty.any():
        logger.info("left out %d of %d images without objects", found.is_empty.sum(), len(found.records))
        found = found.select(np.flatnonzero(~found.is_empty))
    if not found.records:
        raise DatasetError(
            f"nothing to train on: {', '.join(cfg.DATASETS.TRAIN) or 'DATASETS.TRAIN is empty'}"
        )
    return found


def expected_epoch_size(cfg: Any, datasets: Datasets | None = None) -> float:
    """Return the expected number of samples in an epoch of training, repeats included.

    Raises:
        DatasetError: see `load_training_data`.
        ValueError: DATALOADER.SAMPLER_TRAIN is unknown.
    """
    return float(_repeats(cfg, load_training_data(cfg, datasets or Datasets())).sum())


def repeat_factors(categories: Sequence[Sequence[int]], threshold: float, sqrt: bool = True) -> np.ndarray:
    """Return how often each record occurs in an epoch on average (N,); 1 unless it has a rare category.

    A category in a share f of the images has the factor max(1, threshold / f), or the square root of that. A
    record gets the largest factor of its `categories`, which are listed without repeats (LVIS, Gupta et al.,
    2019, appendix B).
    """
    listed = list(categories)
    images = Counter(itertools.chain.from_iterable(listed))
    power = 0.5 if sqrt else 1.0
    factors = {c: max(1.0, (threshold * len(listed) / count) ** power) for c, count in images.items()}
    return np.array([max((factors[c] for c in present), default=1.0) for present in listed])


SAMPLERS: dict[str, Callable[[Any, LoadedDataset], np.ndarray]] = {
    "TrainingSampler": lambda options, trained: np.ones(len(trained.records)),
    "RepeatFactorTrainingSampler": lambda options, trained: repeat_factors(
        trained.categories, options.REPEAT_THRESHOLD, options.REPEAT_SQRT
    ),
}


def _repeats(cfg: Any, trained: LoadedDataset) -> np.ndarray:
    options = cfg.DATALOADER
    return choice("DATALOADER.SAMPLER_TRAIN", options.SAMPLER_TRAIN, SAMPLERS)(options, trained)


def _loader(cfg: Any, samples: Dataset[Any], batches: Any) -> Loader:
    workers = cfg.DATALOADER.NUM_WORKERS
    return Loader(
        samples,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=pack if workers else list,  # samples differ in size and are not stacked
        worker_init_fn=functools.partial(_init_worker, max_megapixels=cfg.INPUT.MAX_MEGAPIXELS),
    )


def _init_worker(worker: int, max_megapixels: float) -> None:
    set_pixel_limit(max_megapixels)  # a worker that is not forked does not inherit it
    cv2.setNumThreads(0)  # the workers themselves run in parallel
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_on_sigterm_of_parent, daemon=True).start()


def _exit_on_sigterm_of_parent() -> None:
    """Exit on SIGTERM from the training process only.

    A scheduler sends SIGTERM to every process, but the training process still needs batches until it ends.
    """
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
