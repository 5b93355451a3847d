"""Swin-T, panoptic, 800x1088: the network and a whole image, against transformers and against the products.

    python benchmarks/inference.py [--image IMAGE]
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python benchmarks/inference.py --fp32-network

Both sides have the same weights, drawn by the recipe of tests/support/golden.py with sharper classes, so that
segments come out, and see the same image (a file's cut and resized to 480x640, or else a drawn one).
"Network" is from the normalized, padded image to class and dense mask logits. "Image" is from pixels to the
panoptic map at the image's size: ours through `Predictor`; theirs through image processor, network and its
post-processing, which works at 384x384 and so does less.

The floor is what a prediction multiplies, and nothing else: each matrix product, convolution and attention of
the network, of the same shapes and layouts, into memory that is there already where torch allows it. Sampling
of deformable attention is not part of it.

Memory is the peak of a fresh process that loads the model and predicts once.

With `--fp32-network` only the network in fp32 is timed: the variables show what lesser processors do, on
which bf16 is slow.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import torch
from measure import alternate, child_peak_mb, ratio, run_alone, table
from products import Products
from torch import Tensor

from mask2former.config import load_config
from mask2former.engine.build import build_model
from mask2former.modeling.layers import chunking
from mask2former.predictor import Predictor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from golden import COCO_THINGS, fill  # the drawn weights

CONFIG = "coco/panoptic-segmentation/swin/maskformer2_swin_tiny_bs16_50ep.yaml"
THRESHOLD = 0.3  # of a query's class; weights that were drawn are rarely sure
OPTIONS = [
    *("MODEL.DEVICE", "cpu"),
    *("MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", THRESHOLD),
    *("MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD", 0.0),
]
SHARPNESS = 8  # of the drawn classes: many queries then pass the threshold
IMAGE = (1, 3, 800, 1088)
RUNS = 5


class Ours:
    """Our model in one precision."""

    def __init__(self, folder: Path, precision: str) -> None:
        self.predictor = Predictor(folder / "ours.pth", precision=precision)
        self.model = self.predictor.model

    def network(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits and dense mask logits."""
        bf16 = self.model.precision == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            predictions = self.model.network(images)
        return predictions.layers[-1].class_logits.float(), predictions.mask_logits()

    def image(self, image: np.ndarray) -> np.ndarray:
        """Return the panoptic map of an image (H, W, 3)."""
        panoptic = self.predictor(image).panoptic
        assert panoptic is not None
        return panoptic.ids


class Theirs:
    """transformers' model with its image processor and post-processing."""

    def __init__(self, folder: Path, precision: str) -> None:
        import transformers

        assert precision == "fp32"
        self.model = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(
            folder / "theirs"
        ).eval()
        self.processor = transformers.Mask2FormerImageProcessorPil()

    def network(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits and dense mask logits."""
        outputs = self.model(pixel_values=images)
        return outputs.class_queries_logits, outputs.masks_queries_logits

    def image(self, image: np.ndarray) -> np.ndarray:
        """Return the panoptic map of an image (H, W, 3)."""
        inputs = self.processor(image, return_tensors="pt")
        (result,) = self.processor.post_process_panoptic_segmentation(
            self.model(**inputs),
            threshold=THRESHOLD,
            overlap_mask_area_threshold=0.0,
            label_ids_to_fuse=set(range(len(COCO_THINGS), 133)),
            target_sizes=[image.shape[:2]],
        )
        return result["segmentation"].numpy()


SIDES: dict[str, Callable[[Path], Any]] = {
    "transformers": lambda folder: Theirs(folder, "fp32"),
    "ours fp32": lambda folder: Ours(folder, "fp32"),
    "ours bf16": lambda folder: Ours(folder, "bf16"),
}


def save_both(folder: Path) -> None:
    """Create the same weights as our checkpoint and as transformers' model."""
    from transformers_side import save_for_transformers

    cfg = load_config(CONFIG, OPTIONS)
    cfg.MODEL.MASK_FORMER.THING_IDS = list(COCO_THINGS)
    ours = fill(build_model(cfg))
    ours.sem_seg_head.predictor.class_embed.weight *= SHARPNESS
    torch.save({"model": ours.state_dict(), "config": cfg.dump()}, folder / "ours.pth")
    save_for_transformers(ours, cfg, folder / "theirs")


def read_image(path: str | None) -> np.ndarray:
    """Return RGB (480, 640, 3) of a file, or synthetic colored blobs of several sizes."""
    if path is None:
        rng = np.random.default_rng(0)
        layers = [rng.random((size * 3, size * 4, 3), dtype=np.float32) for size in (2, 5, 12, 40, 160)]
        blobs = sum(cv2.resize(layer, (640, 480), interpolation=cv2.INTER_CUBIC) for layer in layers)
        return np.clip(np.asarray(blobs) / len(layers) * 510 - 128, 0, 255).astype(np.uint8)
    image = cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB)
    height = min(image.shape[0], image.shape[1] * 3 // 4)
    width = height * 4 // 3
    return cv2.resize(image[:height, :width], (640, 480), interpolation=cv2.INTER_AREA)


def floor(side: Ours, images: Tensor) -> Callable[[], None]:
    """Return a function that does the network's products and nothing else.

    They are recorded with whole sequences, not the chunks of inference: the same products, but fewer.
    """
    with patch.object(chunking, "CHUNK_BYTES", 2**60), Products() as products:
        side.network(images)
    return products.replay()


@torch.no_grad()
def report(image: str | None = None) -> str:
    """Return the table; see above."""
    with tempfile.TemporaryDirectory() as folder:
        save_both(Path(folder))
        memory = {
            (name, what): child_peak_mb([sys.executable, __file__, "--child", name, what, folder])
            for name in SIDES
            for what in ("network", "image")
        }
        sides = {name: build(Path(folder)) for name, build in SIDES.items()}
    images, pixels = torch.randn(IMAGE, generator=torch.Generator().manual_seed(0)), read_image(image)
    runs: dict[str, Callable[[], object]] = {
        **{f"{name} network": lambda side=side: side.network(images) for name, side in sides.items()},
        **{f"{name} image": lambda side=side: side.image(pixels) for name, side in sides.items()},
        "floor fp32": floor(sides["ours fp32"], images),
        "floor bf16": floor(sides["ours bf16"], images),
    }
    seconds = alternate(runs, RUNS)
    return f"{_rows(seconds, memory)}\n\n{agreement(sides, images, pixels)}"


@torch.no_grad()
def fp32_network() -> str:
    """Return the table of the network in fp32 alone."""
    with tempfile.TemporaryDirectory() as folder:
        save_both(Path(folder))
        ours, theirs = Ours(Path(folder), "fp32"), Theirs(Path(folder), "fp32")
    images = torch.randn(IMAGE, generator=torch.Generator().manual_seed(0))
    runs = {
        "transformers": lambda: theirs.network(images),
        "ours": lambda: ours.network(images),
        "floor": floor(ours, images),
    }
    seconds = alternate(runs, RUNS)
    compared = [ratio(seconds["transformers"], seconds["ours"]), ratio(seconds["ours"], seconds["floor"])]
    titles = ["torch's kernels", *runs, "faster", "over the floor"]
    times = [f"{seconds[name]:.2f} s" for name in runs]
    return table([titles, [torch.backends.cpu.get_cpu_capability(), *times, *compared]])


def _rows(seconds: dict[str, float], memory: dict[tuple[str, str], float]) -> str:
    rows = [
        [
            "",
            "transformers fp32",
            "ours fp32",
            "ours bf16",
            "fp32 faster",
            "bf16 faster",
            "fp32 memory",
            "bf16 memory",
        ]
    ]
    for what in ("network", "image"):
        time = {name: seconds[f"{name} {what}"] for name in SIDES}
        rows.append(
            [
                what,
                *(f"{time[name]:.2f} s, {memory[name, what]:.0f} MB" for name in SIDES),
                *(ratio(time["transformers"], time[name]) for name in ("ours fp32", "ours bf16")),
                *(
                    ratio(memory[name, what], memory["transformers", what])
                    for name in ("ours fp32", "ours bf16")
                ),
            ]
        )
    floors = [seconds["floor fp32"], seconds["floor bf16"]]
    over = [ratio(seconds[f"ours {kind} network"], seconds[f"floor {kind}"]) for kind in ("fp32", "bf16")]
    rows.append(["floor", "", *(f"{time:.2f} s" for time in floors), "", "", "", ""])
    rows.append(["network over floor", "", *over, "", "", "", ""])
    return table(rows)


def agreement(sides: dict[str, Any], images: Tensor, image: np.ndarray) -> str:
    """Compare the sides' logits, and report how much of the panoptic map bf16 leaves unchanged.

    The map of transformers is not compared: unlike the published model's, it has no empty pixels.
    """
    logits = {name: side.network(images) for name, side in sides.items()}
    lines = []
    for name in ("transformers", "ours bf16"):
        classes, masks = (
            float((ours - other).abs().max() / ours.abs().max())
            for ours, other in zip(logits["ours fp32"], logits[name], strict=True)
        )
        lines.append(
            f"- ours fp32 and {name}: class logits differ by up to {classes:.1e} of the largest, mask logits "
            f"by {masks:.1e}."
        )
    fp32, bf16 = (sides[name].image(image) for name in ("ours fp32", "ours bf16"))
    segments = len(np.unique(fp32[fp32 > 0]))
    same = same_pixels(fp32, bf16)
    lines.append(f"- {same:.2%} of the panoptic map, which has {segments} segments, is the same in bf16.")
    return "\n".join(lines)


def same_pixels(ours: np.ndarray, other: np.ndarray) -> float:
    """Return the share of pixels whose two segments are each other's largest overlap."""
    pairs, counts = np.unique(np.stack((ours.ravel(), other.ravel())), axis=1, return_counts=True)
    largest = [{segment: counts[side == segment].max() for segment in np.unique(side)} for side in pairs]
    mutual = [
        count == largest[0][one] == largest[1][two] for (one, two), count in zip(pairs.T, counts, strict=True)
    ]
    return float(counts[mutual].sum() / ours.size)


@torch.no_grad()
def predict_once(name: str, what: str, folder: str) -> None:
    """Predict once in the process whose memory is measured."""
    side = SIDES[name](Path(folder))
    if what == "network":
        side.network(torch.zeros(IMAGE))
    else:
        side.image(read_image(None))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", help="a real one, for the agreement of panoptic maps")
    parser.add_argument("--fp32-network", action="store_true", help="time the network in fp32 alone")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        predict_once(*arguments.child)
    else:
        run_alone(fp32_network if arguments.fp32_network else lambda: report(arguments.image))
