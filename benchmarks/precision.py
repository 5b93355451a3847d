"""Prediction in fp32, bf16 and int8, in turns: seconds of the processor, and metrics of a trained model.

    python benchmarks/precision.py --calibrate DIR MODEL.pth [--dataset shapes_val]
    python benchmarks/precision.py coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml --size 800 1088

The second form draws the weights of a config, and calibrates on noise: for times of a model of real size. The
time is that of backbone, pixel decoder and transformer decoder, and does not count other programs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from measure import ratio, run_alone, table

from mask2former.config import load_config
from mask2former.engine.build import build_model
from mask2former.engine.evaluate import Evaluation
from mask2former.engine.setup.trained_model import stored_config
from mask2former.modeling.mask_former import MaskFormer
from mask2former.options import PREDICTION_PRECISIONS
from mask2former.predictor import Predictor
from mask2former.utils.image_io import write_image
from mask2former.weights.read import read_checkpoint

PARTS = ("backbone", "pixel decoder", "transformer decoder", "network")
METRICS = (("panoptic_seg", "PQ"), ("segm", "AP"), ("sem_seg", "mIoU"))


@torch.no_grad()
def seconds(model: MaskFormer, images: torch.Tensor) -> list[float]:
    """Return the processor seconds of each of `PARTS`."""
    times = [time.process_time()]
    with model._autocast():
        features = model.backbone(images)
        times.append(time.process_time())
        mask_features, memory = model.sem_seg_head.pixel_decoder(features)
        times.append(time.process_time())
        model.sem_seg_head.predictor(memory, mask_features)
        times.append(time.process_time())
    return [*(end - start for start, end in pairwise(times)), times[-1] - times[0]]


def report(checkpoint: Path, calibrate: Path, size: Sequence[int], runs: int, dataset: str | None) -> str:
    """Measure all precisions on an image of `size` (height, width), and on a dataset if there is one."""
    models = {
        name: Predictor(checkpoint, precision=name, calibrate=calibrate if name == "int8" else None).model
        for name in PREDICTION_PRECISIONS
    }
    images = torch.randn((1, 3, *size), generator=torch.Generator().manual_seed(0))
    found: dict[str, list[list[float]]] = {name: [] for name in models}
    for _ in range(1 + runs):
        for name, model in models.items():
            found[name].append(seconds(model, images))
    medians = {
        name: [statistics.median(part[1:]) for part in zip(*found[name], strict=True)] for name in found
    }
    rows = [
        ["CPU seconds", *PARTS, "fp32 / this", "bf16 / this", *([m for _, m in METRICS] if dataset else [])]
    ]
    for name, model in models.items():
        ratios = [ratio(medians[other][-1], medians[name][-1]) for other in ("fp32", "bf16")]
        rows.append([name, *(f"{part:.3f}" for part in medians[name]), *ratios])
        rows[-1] += metrics(model, checkpoint, dataset) if dataset else []
    return table(rows)


def metrics(model: MaskFormer, checkpoint: Path, dataset: str) -> list[str]:
    """Return PQ, AP and mIoU."""
    cfg = stored_config(read_checkpoint(checkpoint), ["DATASETS.TEST", (dataset,)])
    with tempfile.TemporaryDirectory() as folder:
        results = Evaluation(cfg, folder)(model)
    return [f"{results[task][metric]:.2f}" for task, metric in METRICS]


def save_drawn(config: str, size: Sequence[int], folder: Path) -> tuple[Path, Path]:
    """Save a checkpoint of weights that are drawn, and a folder with an image of noise of that size."""
    torch.manual_seed(0)
    cfg = load_config(config, ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", min(size)])
    path, images = folder / "drawn.pth", folder / "images"
    torch.save({"model": build_model(cfg).state_dict(), "config": cfg.dump(), "metadata": {}}, path)
    images.mkdir()
    write_image(images / "noise.png", np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    return path, images


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a checkpoint, or a config whose weights are drawn")
    parser.add_argument("--calibrate", type=Path, metavar="DIR", help="images, for a checkpoint")
    parser.add_argument("--dataset", help="with a checkpoint: evaluate on it")
    parser.add_argument("--size", type=int, nargs=2, default=(128, 128), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        is_config = arguments.model.endswith(".yaml")
        files = (Path(arguments.model), arguments.calibrate)
        files = save_drawn(arguments.model, arguments.size, Path(name)) if is_config else files
        run_alone(lambda: report(*files, arguments.size, arguments.runs, arguments.dataset))
