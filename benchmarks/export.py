"""One trained model in PyTorch and as exported files: size, time of the network, and metrics.

    DETECTRON2_DATASETS=datasets python benchmarks/export.py output/shapes/model_final.pth --calibrate DIR
    python benchmarks/export.py --drawn coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml --size 384

The first form takes the model of `make run`, and measures it on the dataset that it was tested on. The second
draws the weights of a config, to time a model of real size: it has no metrics, and its int8 is calibrated on
noise.

Times are of the network for one image, from the normalized image to class and mask logits; all sides take
turns. "CPU ms" are those that the process gets on all cores, which other programs change less. With --folder,
files are kept, and taken from there the next time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measure import run_alone, table
from torch import Tensor

from mask2former.config import load_config
from mask2former.engine.build import build_model
from mask2former.engine.evaluate import Evaluation
from mask2former.engine.setup.trained_model import stored_config
from mask2former.export.exported_model import read_trained
from mask2former.modeling.mask_former import MaskFormer
from mask2former.options import CALIBRATION_IMAGES
from mask2former.predictor import Predictor
from mask2former.tools.export import main as export
from mask2former.utils.image_io import write_image

NAMES = {  # suffix of the file, precision
    "PyTorch, fp32": (".pth", "fp32"),
    "PyTorch, bf16": (".pth", "bf16"),
    "torch.export": (".pt2", "fp32"),
    "ONNX Runtime": (".onnx", "fp32"),
    "OpenVINO, fp32": (".xml", "fp32"),
    "OpenVINO, bf16": (".xml", "bf16"),
    "ONNX Runtime, int8": ("-int8.onnx", "fp32"),
    "OpenVINO, int8": ("-int8.xml", "fp32"),
}
FORMATS = {".onnx": "onnx", ".xml": "openvino", ".pt2": "torch"}


def write_files(checkpoint: Path, images: Path, folder: Path) -> dict[str, Path]:
    """Export a checkpoint to all files that are not there; return all by suffix."""
    files = {".pth": checkpoint}
    for suffix in {suffix for suffix, _ in NAMES.values()} - {".pth"}:
        file = files[suffix] = folder / f"model{suffix}"
        int8 = ["--int8", "--calibrate", str(images)] if "int8" in suffix else []
        arguments = [str(checkpoint), "--output", str(file), "--format", FORMATS[file.suffix], *int8]
        if not file.exists() and export(arguments):
            raise RuntimeError(f"mask2former export {' '.join(arguments)} failed")
    return files


def megabytes(file: Path) -> float:
    """Return the size of a file, with the weights beside it."""
    paths = {file, file.with_suffix(".bin")} if file.suffix == ".xml" else {file}
    return sum(path.stat().st_size for path in paths) / 1e6


def network(model: MaskFormer, images: Tensor) -> Callable[[], object]:
    """Return a function that predicts class and mask logits."""

    def run() -> object:
        with torch.inference_mode(), model._autocast():
            predictions = model.network(images)
        masks = predictions.mask_logits
        return masks if isinstance(masks, Tensor) else masks()

    return run


def alternate(sides: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[str]]:
    """Return the median milliseconds of each side, on the clock and on the processor, after a warm-up."""
    clocks = (time.perf_counter, time.process_time)
    seconds: dict[str, list[list[float]]] = {name: [] for name in sides}
    for _ in range(1 + repeats):
        for name, run in sides.items():
            start = [clock() for clock in clocks]
            run()
            seconds[name].append([clock() - begin for clock, begin in zip(clocks, start, strict=True)])
    return {
        name: [f"{1000 * statistics.median(times):.0f}" for times in zip(*runs[1:], strict=True)]
        for name, runs in seconds.items()
    }


def metrics(model: MaskFormer, evaluation: Evaluation | None) -> list[str]:
    """Return PQ, AP and mIoU; nothing without an evaluation."""
    if evaluation is None:
        return []
    results = evaluation(model)
    named = (("panoptic_seg", "PQ"), ("segm", "AP"), ("sem_seg", "mIoU"))
    return [f"{results[task][metric]:.2f}" for task, metric in named]


def report(files: dict[str, Path], size: tuple[int, int], repeats: int, dataset: str | None) -> str:
    """Measure all sides on images of `size` (height, width), and on a dataset if there is one."""
    models = {
        name: Predictor(files[suffix], precision=precision).model
        for name, (suffix, precision) in NAMES.items()
    }
    images = torch.randn((1, 3, *size), generator=torch.Generator().manual_seed(0))
    times = alternate({name: network(model, images) for name, model in models.items()}, repeats)
    rows = [["", "MB", "ms", "CPU ms", *(["PQ", "AP", "mIoU"] if dataset else [])]]
    with tempfile.TemporaryDirectory() as folder:
        evaluation = None
        if dataset:
            cfg = stored_config(read_trained(files[".pth"]), ["DATASETS.TEST", (dataset,)])
            evaluation = Evaluation(cfg, folder)
        for name, model in models.items():
            size_mb = f"{megabytes(files[NAMES[name][0]]):.1f}"
            rows.append([name, size_mb, *times[name], *metrics(model, evaluation)])
    return table(rows)


def save_drawn(config: str, folder: Path) -> tuple[Path, Path]:
    """Save a checkpoint of weights that are drawn, and a folder of images of noise."""
    torch.manual_seed(0)
    cfg = load_config(config, ["MODEL.DEVICE", "cpu"])
    path, images = folder / "drawn.pth", folder / "images"
    torch.save({"model": build_model(cfg).state_dict(), "config": cfg.dump(), "metadata": {}}, path)
    images.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(4):
        write_image(images / f"{number}.png", rng.integers(0, 256, (480, 640, 3), dtype=np.uint8))
    return path, images


def main() -> None:
    """Print the machine and the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", nargs="?", type=Path)
    parser.add_argument("--calibrate", type=Path, metavar="DIR", help=f"up to {CALIBRATION_IMAGES} images")
    parser.add_argument("--dataset", default="shapes_panoptic_val", help="measure on it")
    parser.add_argument("--drawn", metavar="CONFIG", help="a config whose weights are drawn")
    parser.add_argument("--folder", type=Path, help="keep files here (default: nowhere)")
    parser.add_argument("--runs", type=int, default=15, help="of which the median counts")
    parser.add_argument("--size", type=int, default=128, help="side of the image for the times")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = args.folder or Path(name)
        checkpoint, images = (
            save_drawn(args.drawn, folder) if args.drawn else (args.checkpoint, args.calibrate)
        )
        files = write_files(checkpoint, images, folder)
        dataset = None if args.drawn else args.dataset
        run_alone(lambda: report(files, (args.size, args.size), args.runs, dataset))


if __name__ == "__main__":
    main()
