"""What a training image costs: decoding it alone, making its sample, and the whole loader with two workers.

    M2F_SHARED=<folder of the shared samples> python benchmarks/loader.py

Milliseconds of processor time, user and system, which other programs disturb less than time on the clock. The
loader's time in the training process is what each step waits for; that of the workers includes their start
and a few batches that they make ahead. The drawn dataset has 128 x 128 pixels; images of COCO, which need
M2F_SHARED, become 1024 x 1024 pixels.
"""

from __future__ import annotations

import gc
import itertools
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import torch
from measure import run_alone, table

from mask2former.config import load_config
from mask2former.data import register_coco_instances
from mask2former.data.datasets.shapes import write_shapes
from mask2former.data.loader import Loader, build_train_loader
from mask2former.data.mapper import record_image

DRAWN = "shapes/panoptic-segmentation/maskformer2_R18_bs8_shapes.yaml"
COCO = "coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml"
SAMPLES = "data/samples/super_gradients_tinycoco"
WORKERS, STEPS, RUNS = 2, 20, 3
Loaders = Callable[[int], Loader]  # number of workers -> loader


def loader(config: str, options: dict[str, Any], workers: int) -> Loader:
    """Return a loader of a config."""
    values = {**options, "DATALOADER.NUM_WORKERS": workers, "SEED": 1}
    return build_train_loader(load_config(config, [part for pair in values.items() for part in pair]))


def seconds_alone(loaders: Loaders) -> tuple[float, float, int]:
    """Return the seconds of decoding the images of all steps, of making their samples, and their number."""
    alone = loaders(0)
    keys = list(itertools.chain.from_iterable(itertools.islice(alone.batch_sampler, STEPS)))
    start = time.process_time()
    for index, _ in keys:
        record_image(alone.dataset.records[index])
    decoded = time.process_time()
    for key in keys:
        alone.dataset[key]
    return decoded - start, time.process_time() - decoded, len(keys)


def seconds_loaded(loaders: Loaders) -> tuple[float, float]:
    """Return the seconds of all steps in this process and in its workers."""
    loaded = loaders(WORKERS)
    before = _spent()
    batches = iter(loaded)
    for _ in itertools.islice(batches, STEPS):
        pass
    del batches  # the workers end, and their time counts
    gc.collect()
    here, workers = (after - start for after, start in zip(_spent(), before, strict=True))
    return here, workers


def _spent() -> tuple[float, float]:
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    here, workers = (usage.ru_utime + usage.ru_stime for usage in usages)
    return here, workers


def measure(loaders: Loaders) -> list[str]:
    """Return the columns of one dataset: medians of runs in turns, after one that does not count."""
    runs = []
    for _ in range(1 + RUNS):
        decoding, samples, images = seconds_alone(loaders)
        here, workers = seconds_loaded(loaders)
        runs.append([1e3 * seconds / images for seconds in (decoding, samples, workers, here)])
    return [f"{statistics.median(times):.1f}" for times in zip(*runs[1:], strict=True)]


def report() -> str:
    """Return the table; see above."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    rows = [["dataset", "decoding alone", "sample", "loader: workers", "loader: training process"]]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DETECTRON2_DATASETS"] = folder
        write_shapes(Path(folder), {"train": 100, "val": 1})
        rows.append(["drawn, 8 images a step", *measure(partial(loader, DRAWN, {}))])
    if shared := os.environ.get("M2F_SHARED"):
        source = Path(shared, SAMPLES)
        annotations, images = source / "annotations/instances_val2017.json", source / "images/val2017"
        register_coco_instances("benchmark_coco", {}, annotations, images)
        options = {"DATASETS.TRAIN": ("benchmark_coco",), "SOLVER.IMS_PER_BATCH": 2}
        rows.append(["COCO, 2 images a step", *measure(partial(loader, COCO, options))])
    return f"Milliseconds an image, with {WORKERS} workers.\n\n" + table(rows)


if __name__ == "__main__":
    run_alone(report)
