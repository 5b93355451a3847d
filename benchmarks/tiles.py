"""Accuracy of prediction in tiles on large images with small objects.

    python benchmarks/tiles.py model_final.pth [--images 12] [--side 640]

The images are drawn: two textures of the dataset `shapes`, and many of its shapes. Their sizes are those of
the images of 128 pixels that the model of `make run` was trained on; a few are larger than a tile. A row of
the table is one way of predicting them.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from measure import machine, table

from mask2former.config import load_config
from mask2former.data.datasets.drawn import LABEL_DIVISOR, Rng, SyntheticImage, paint
from mask2former.data.datasets.shapes import MAX_ROTATION, SHAPES, THINGS, draw_background, form_mask
from mask2former.engine.build import build_model
from mask2former.engine.evaluate import evaluate, load_trained_weights

CONFIG = "shapes/panoptic-segmentation/maskformer2_R18_bs8_shapes.yaml"
RADIUS = (7, 20)  # pixels, of most shapes
LARGE_RADIUS = (90, 130)
PIXELS_PER_SHAPE = 5_000
WAYS: dict[str, list[Any]] = {
    "whole image, at the size of training": [],
    "whole image, at its own size": ["INPUT.MIN_SIZE_TEST", 0],
    "tiles of 128": ["TEST.TILE.SIZE", 128],
    "tiles of 192": ["TEST.TILE.SIZE", 192],
    "tiles of 192, at their own size": ["TEST.TILE.SIZE", 192, "INPUT.MIN_SIZE_TEST", 192],
}
METRICS = {
    "segm": ("AP", "APs", "APm", "APl"),
    "panoptic_seg": ("PQ", "PQ_th", "PQ_st"),
    "sem_seg": ("mIoU",),
}


def draw_scene(rng: Rng, side: int) -> SyntheticImage:
    """Draw two textures, one large shape and many small ones."""
    image, ids = draw_background(rng, side)
    for number in range(1, 2 + side * side // PIXELS_PER_SHAPE):
        radius = rng.uniform(*(LARGE_RADIUS if number == 1 else RADIUS)) / side
        category = THINGS[rng.integers(len(THINGS))]
        rotation = rng.uniform(-MAX_ROTATION, MAX_ROTATION)
        inside = form_mask(category["name"], rng.uniform(0, side, 2), radius, rotation, side)
        paint(rng, image, inside, rng.uniform(0, 255, 3))
        ids[inside] = category["id"] * LABEL_DIVISOR + number
    return SyntheticImage(np.clip(image, 0, 255).astype(np.uint8), ids)


def measure(checkpoint: str, opts: Sequence[Any], folder: Path) -> list[str]:
    """Return the metrics of one way of predicting, and the seconds an image."""
    fixed = ["MODEL.WEIGHTS", checkpoint, "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", 0]
    cfg = load_config(CONFIG, [*fixed, "INPUT.MAX_SIZE_TEST", 4_000, *opts])
    model = build_model(cfg)
    load_trained_weights(cfg, model)
    start = time.perf_counter()
    results = evaluate(cfg, model, folder)
    seconds = time.perf_counter() - start
    return [*(f"{results[task][name]:.1f}" for task in METRICS for name in METRICS[task]), f"{seconds:.0f} s"]


def report(checkpoint: str, images: int, side: int) -> str:
    """Return a table of the ways of predicting."""
    rows = [["predicted", *(name for names in METRICS.values() for name in names), "time"]]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DETECTRON2_DATASETS"] = folder
        SHAPES._replace(draw=partial(draw_scene, side=side)).write(Path(folder), {"val": images})
        for name, opts in WAYS.items():
            rows.append([name, *measure(checkpoint, opts, Path(folder, "output"))])
    return f"{machine()}\n\n{table(rows)}"


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", help="the model of `make run`, by its path")
    parser.add_argument("--images", type=int, default=12, help="number of images")
    parser.add_argument("--side", type=int, default=640, help="of an image, in pixels")
    args = parser.parse_args()
    sys.stdout.write(report(args.checkpoint, args.images, args.side) + "\n")


if __name__ == "__main__":
    main()
