"""Post-processing of a large image: time and memory of `Predictor`, against upsampling all masks first.

    python benchmarks/postprocessing.py

The network is replaced by drawn logits of its kind (100 queries, 133 classes), so that what is timed is all
that `Predictor` does around it for an image of 3000x4000 pixels: resizing the image, then from logits to a
`Result`. The plain side is the published way, on the same logits: all masks resized to the padded image,
cropped, resized to the output, then the task's arithmetic. It is written to torch's advantage: in place where
that is possible, the distinct masks once, and `max` where `argmax` would take several times as long.

Each side of each task runs in a process of its own. Memory is what the process takes at most above what it
held just before.

Shapes: `Q` queries, `K` classes, `h, w` the sides of the mask logits, `H, W` the image's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import MB, alternate, ratio, run_alone, table
from torch import Tensor
from torch.nn.functional import interpolate

from mask2former.config import load_config
from mask2former.engine.build import build_model
from mask2former.modeling.predictions import Prediction, Predictions
from mask2former.predictor import Predictor

QUERIES, CLASSES = 100, 133
ORIGINAL, IMAGE, PADDED, LOGITS = (3000, 4000), (800, 1067), (800, 1088), (200, 272)
KEPT_SCORE, OVERLAP = 0.8, 0.8
PLAIN_NEEDS_MB = 13_000
OPTIONS = {
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.MASK_FORMER.DEC_LAYERS": 2,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
    "MODEL.MASK_FORMER.THING_IDS": list(range(CLASSES)),
    "DATASETS.TRAIN": (),
    "DATASETS.TEST": (),
}
TASKS = {  # row -> tasks that are on, whether mask logits are resized rather than scores
    "semantic, of a panoptic model": ("semantic", True),
    "semantic, of a semantic model": ("semantic", False),
    "instance": ("instance", True),
    "panoptic": ("panoptic", True),
}


def draw_logits(sure: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw class logits (Q, K+1) and mask logits (Q, h, w): wobbly ellipses from 4 to 90 cells large.

    `sure` queries have a class of a probability near 1; the others are "no object", with masks that are
    weaker and mostly negative.
    """
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    height, width = LOGITS
    y, x = np.mgrid[:height, :width] + 0.5
    coarse = torch.randn(QUERIES, 1, height // 16 + 1, width // 16 + 1)
    wobble = interpolate(coarse, size=LOGITS, mode="bicubic")[:, 0].numpy()
    masks, classes = np.empty((QUERIES, *LOGITS), np.float32), random.normal(size=(QUERIES, CLASSES + 1))
    for q in range(QUERIES):
        angle, size = random.uniform(0, np.pi), np.exp(random.uniform(np.log(4), np.log(90)))
        long, short = size * np.exp(random.uniform(0, 0.35)), size * np.exp(-random.uniform(0, 0.35))
        dx, dy = x - random.uniform(0, width), y - random.uniform(0, height)
        u, v = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
        depth = (1 - np.hypot(u / long, v / short)) * short  # cells from the edge
        masks[q] = np.clip(2 * depth + 4 * wobble[q], -14, 8) + random.normal(scale=0.5, size=LOGITS)
        masks[q] -= 0 if q < sure else random.uniform(2, 8)
        classes[q, random.integers(CLASSES)] += random.uniform(9, 12) if q < sure else random.uniform(3, 8)
        classes[q, CLASSES] += 0 if q < sure else random.uniform(8, 12)
    return torch.from_numpy(classes).float(), torch.from_numpy(masks)


def predictor_of(task: str, resize_first: bool, class_logits: Tensor, mask_logits: Tensor) -> Predictor:
    """Return a predictor for one task whose network always gives these logits."""
    options = [part for item in OPTIONS.items() for part in item]
    cfg = load_config("coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml", options)
    for name in ("SEMANTIC", "INSTANCE", "PANOPTIC"):
        cfg.MODEL.MASK_FORMER.TEST[f"{name}_ON"] = name.lower() == task
    cfg.MODEL.MASK_FORMER.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE = resize_first
    with tempfile.TemporaryDirectory() as folder:
        cfg.MODEL.WEIGHTS = str(Path(folder) / "model.pth")
        torch.save({"model": build_model(cfg).state_dict()}, cfg.MODEL.WEIGHTS)
        predictor = Predictor(cfg, score_threshold=0.0, duplicate_iou=1.0)

    class Fixed(Predictions):
        def mask_logits(self, layer: int = -1) -> Tensor:
            return mask_logits[None]

    def network(images: Tensor) -> Predictions:
        assert images.shape[-2:] == PADDED
        return Fixed([Prediction(class_logits[None], mask_logits[None])], mask_logits[None])

    predictor.model.network = network  # type: ignore[assignment, method-assign]
    return predictor


# --- the published implementation ---


def upsampled(mask_logits: Tensor) -> Tensor:
    """Resize all masks to the output size (Q, H, W)."""
    padded = interpolate(mask_logits[None], size=PADDED, mode="bilinear", align_corners=False)
    image = padded[..., : IMAGE[0], : IMAGE[1]]
    return interpolate(image, size=ORIGINAL, mode="bilinear", align_corners=False)[0]


def plain_semantic(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Return a label map from mask logits at output size."""
    classes = class_logits.softmax(-1)[:, :-1]
    return torch.einsum("qk,qhw->khw", classes, upsampled(mask_logits).sigmoid_()).max(0).indices


def plain_semantic_of_scores(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Return a label map from scores at output size."""
    classes = class_logits.softmax(-1)[:, :-1]
    padded = interpolate(mask_logits[None], size=PADDED, mode="bilinear", align_corners=False)[0]
    scores = torch.einsum("qk,qhw->khw", classes, padded.sigmoid())[:, : IMAGE[0], : IMAGE[1]]
    return interpolate(scores[None], size=ORIGINAL, mode="bilinear", align_corners=False)[0].max(0).indices


def plain_instance(class_logits: Tensor, mask_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return masks (Q, H, W) bool, and the scores and queries of the 100 best pairs."""
    best, index = class_logits.softmax(-1)[:, :-1].flatten().topk(100)
    logits = upsampled(mask_logits)
    masks = logits > 0
    areas = torch.stack([mask.sum() for mask in masks])  # at once, torch would take eight bytes a pixel
    inside = logits.sigmoid_().mul_(masks).flatten(1).sum(1) / (areas + 1e-6)
    query = index // CLASSES
    return masks, best * inside[query], query


def plain_panoptic(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Return a map (H, W) of segment numbers, one for each query that keeps enough of its mask."""
    probability, label = class_logits.softmax(-1).max(-1)
    kept = (label != CLASSES) & (probability > KEPT_SCORE)
    masks = upsampled(mask_logits)[kept].sigmoid_()
    winner = (probability[kept][:, None, None] * masks).max(0).indices
    ids = torch.zeros(ORIGINAL, dtype=torch.int32)
    for number, mask in enumerate(masks):
        won, own = winner == number, mask >= 0.5
        final = won & own
        if final.any() and won.sum() / own.sum() >= OVERLAP:
            ids[final] = number + 1
    return ids


PLAIN: dict[str, Callable[[Tensor, Tensor], object]] = dict(
    zip(TASKS, (plain_semantic, plain_semantic_of_scores, plain_instance, plain_panoptic), strict=True)
)

# --- measuring ---


def status_mb(key: str) -> float:
    """Read a line of /proc/self/status, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / MB for line in lines if line.startswith(f"{key}:"))


def measured(run: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Return the result of `run`, its seconds, and the added megabytes: at most, and at the end."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status_mb("VmRSS")
    start = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - start
    return result, {
        "seconds": seconds,
        "peak": status_mb("VmHWM") - before,
        "held": status_mb("VmRSS") - before,
    }


def measure_ours(row: str, sure: int, answer: Path) -> dict[str, float]:
    """Measure memory of the first image and median seconds of five more."""
    predictor = predictor_of(*TASKS[row], *draw_logits(sure))
    image = np.zeros((*ORIGINAL, 3), np.uint8)
    result, figures = measured(lambda: predictor(image))
    if result.panoptic is not None:
        np.save(answer, result.panoptic.ids)
    else:
        np.save(answer, result.instances.scores if result.instances is not None else result.semantic)
    del result
    return figures | alternate({"seconds": lambda: predictor(image)}, runs=5, warmup=0)


def measure_plain(row: str, sure: int, answer: Path) -> dict[str, float]:
    """Measure memory and seconds of one run; it is too large to profit from warm caches."""
    logits = draw_logits(sure)
    upsampled(logits[1][:1]).sigmoid_()  # torch's threads start
    result, figures = measured(lambda: PLAIN[row](*logits))
    np.save(answer, result if isinstance(result, Tensor) else result[1].sort(descending=True).values)
    return figures


SIDES = {"ours": measure_ours, "plain": measure_plain}


def in_a_process(side: str, row: str, sure: int, answer: Path) -> dict[str, float]:
    """Measure one side in a separate process, which writes its answer to a file."""
    argv = [
        sys.executable,
        __file__,
        "--side",
        side,
        "--task",
        row,
        "--sure",
        str(sure),
        "--answer",
        str(answer),
    ]
    return json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)


def disagreement(ours: np.ndarray, plain: np.ndarray) -> str:
    """Describe the difference of two answers: scores, or maps with regions numbered in the same order."""
    if ours.ndim == 1:
        return f"scores {np.abs(ours - plain[: len(ours)]).max():.0e}"
    maps = [np.unique(answer, return_inverse=True)[1] for answer in (ours, plain)]
    return f"{np.mean(maps[0] != maps[1]):.0e} of the pixels"


def free_mb() -> float:
    """Return the memory available without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / MB for line in lines if line.startswith("MemAvailable:"))


def compare(row: str, sure: int, folder: Path) -> list[str]:
    """Return a row of the table."""
    ours = in_a_process("ours", row, sure, folder / "ours.npy")
    cells = [row, f"{sure}", f"{ours['seconds']:.2f} s"]
    memory = [f"{ours['peak']:.0f} MB", f"{ours['held']:.0f} MB"]
    if free_mb() < PLAIN_NEEDS_MB:
        return [*cells, "-", "-", *memory, f"needs {PLAIN_NEEDS_MB} MB", "-"]
    plain = in_a_process("plain", row, sure, folder / "plain.npy")
    apart = disagreement(np.load(folder / "ours.npy"), np.load(folder / "plain.npy"))
    faster = ratio(plain["seconds"], ours["seconds"])
    return [*cells, f"{plain['seconds']:.1f} s", faster, *memory, f"{plain['peak']:.0f} MB", apart]


def report() -> str:
    """Return the table of all tasks, for typical images and with every query kept."""
    head = [
        "task",
        "objects",
        "Predictor",
        "plain",
        "ratio",
        "peak",
        "held",
        "plain's peak",
        "results differ by",
    ]
    with tempfile.TemporaryDirectory() as folder:
        rows = [compare(row, sure, Path(folder)) for sure in (30, QUERIES) for row in TASKS]
    return (
        f"`Predictor` around a network that gives {QUERIES} drawn queries, for an image of "
        f"{ORIGINAL[0]}x{ORIGINAL[1]}, against upsampling all masks first; memory above that before.\n\n"
        + table([head, *rows])
    )


def main() -> None:
    """Print the report, or measure one side in a child process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--task", choices=TASKS)
    parser.add_argument("--sure", type=int)
    parser.add_argument("--answer", type=Path)
    args = parser.parse_args()
    if args.side is None:
        run_alone(report)
    else:
        print(json.dumps(SIDES[args.side](args.task, args.sure, args.answer)))


if __name__ == "__main__":
    main()
