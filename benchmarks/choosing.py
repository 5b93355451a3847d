"""Models side by side at 640x640 on a CPU, in float32, and EoMT against transformers' EoMT.

    python benchmarks/choosing.py [--runs N]

Seconds are from pixels to the panoptic map, ours through `Predictor`, theirs through image processor, network
and post-processing; all in turn, with the same drawn weights on both sides of a pair. Memory is the peak of a
fresh process that loads the model and predicts once. FLOPs (two for a multiplication and an addition) and
parameters are those of the cost report.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from inference import SHARPNESS, THRESHOLD, read_image
from measure import alternate, child_peak_mb, ratio, run_alone, table

from mask2former.config import load_config
from mask2former.engine.build import build_model
from mask2former.modeling.eomt.head import EomtHead
from mask2former.predictor import Predictor
from mask2former.tools.convert import write_hub
from mask2former.tools.flops import count_cost
from mask2former.weights.contents import Checkpoint

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from golden import COCO_THINGS, fill  # the drawn weights

SIDE = 640
OPTIONS = [
    *("MODEL.DEVICE", "cpu"),
    *("INPUT.MIN_SIZE_TEST", SIDE),
    *("INPUT.MAX_SIZE_TEST", SIDE),
    *("MODEL.MASK_FORMER.TEST.SEMANTIC_ON", False),
    *("MODEL.MASK_FORMER.TEST.INSTANCE_ON", False),
    *("MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", THRESHOLD),
    *("MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD", 0.0),
    *("MODEL.MASK_FORMER.THING_IDS", list(COCO_THINGS)),
]
EOMT = "coco/panoptic-segmentation/eomt/eomt_dinov2"
MASK2FORMER = "coco/panoptic-segmentation"
THEIRS = "transformers' "


class Model(NamedTuple):
    """A config, and whether transformers' model is measured, too."""

    config: str
    has_pair: bool = False


MODELS = {
    "EoMT-S": Model(f"{EOMT}_small_bs16_24ep.yaml", has_pair=True),
    "EoMT-L": Model(f"{EOMT}_large_bs16_12ep.yaml", has_pair=True),
    "Mask2Former R50": Model(f"{MASK2FORMER}/maskformer2_R50_bs16_50ep.yaml"),
    "Mask2Former Swin-L": Model(f"{MASK2FORMER}/swin/maskformer2_swin_large_IN21k_384_bs16_100ep.yaml"),
}
SIDES = [*MODELS, *(THEIRS + name for name, model in MODELS.items() if model.has_pair)]


@torch.no_grad()
def save(name: str, folder: Path) -> None:
    """Save a model with drawn weights, for transformers too if it has a pair."""
    cfg = load_config(MODELS[name].config, OPTIONS)
    model = fill(build_model(cfg))
    head = model.sem_seg_head
    classes = head.class_head if isinstance(head, EomtHead) else head.predictor.class_embed
    classes.weight *= SHARPNESS  # many queries then pass the threshold
    torch.save({"model": model.state_dict(), "config": cfg.dump()}, folder / f"{name}.pth")
    if MODELS[name].has_pair:
        write_hub(folder / name, Checkpoint(name, {}), cfg, model.state_dict())


def predict(side: str, folder: Path) -> Callable[[np.ndarray], Any]:
    """Return the function from an image (H, W, 3) uint8 RGB to its panoptic result."""
    if not side.startswith(THEIRS):
        predictor = Predictor(folder / f"{side}.pth")
        return lambda image: predictor(image).panoptic
    import transformers

    model = transformers.EomtForUniversalSegmentation.from_pretrained(
        folder / side.removeprefix(THEIRS)
    ).eval()
    processor = transformers.EomtImageProcessorPil(
        size={"shortest_edge": SIDE, "longest_edge": SIDE}, do_pad=True
    )
    stuff = list(range(len(COCO_THINGS), 133))

    def whole(image: np.ndarray) -> Any:
        inputs = processor(image, return_tensors="pt")
        return processor.post_process_panoptic_segmentation(
            model(pixel_values=inputs["pixel_values"]),
            target_sizes=[image.shape[:2]],
            threshold=THRESHOLD,
            overlap_mask_area_threshold=0.0,
            stuff_classes=stuff,
        )

    return whole


def image() -> np.ndarray:
    """Return a drawn image of 640x640."""
    drawn = read_image(None)
    return np.ascontiguousarray(np.resize(drawn, (SIDE, SIDE, 3)))


@torch.no_grad()
def report(runs: int = 5) -> str:
    """Return the table; see above."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model in MODELS:  # in processes of their own: what this one once used would count as theirs
            subprocess.run([sys.executable, __file__, "--save", model, name], check=True)
        memory = {side: child_peak_mb([sys.executable, __file__, "--child", side, name]) for side in SIDES}
        pixels = image()
        sides = {side: predict(side, folder) for side in SIDES}
        seconds = alternate({side: lambda run=run: run(pixels) for side, run in sides.items()}, runs)
    rows = [
        ["model", "parameters", "GFLOPs", "seconds", "memory", "faster than transformers", "memory by theirs"]
    ]
    for name, model in MODELS.items():
        cost = count_cost(load_config(model.config, OPTIONS), (SIDE, SIDE))
        compared = ["", ""]
        if model.has_pair:
            theirs = THEIRS + name
            compared = [ratio(seconds[theirs], seconds[name]), ratio(memory[name], memory[theirs])]
        rows.append(
            [
                name,
                f"{sum(cost.parameters.values()) / 1e6:.1f}M",
                f"{cost.total_flops() / 1e9:.0f}",
                f"{seconds[name]:.2f}",
                f"{memory[name]:.0f} MB",
                *compared,
            ]
        )
    return table(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5, help="images of each model (default: %(default)s)")
    for name in ("--save", "--child"):
        parser.add_argument(name, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.save:
        save(arguments.save[0], Path(arguments.save[1]))
    elif arguments.child:
        with torch.no_grad():
            predict(arguments.child[0], Path(arguments.child[1]))(image())
    else:
        run_alone(lambda: report(arguments.runs))
