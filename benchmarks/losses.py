"""Time and memory of matching and loss on points and on whole masks: the paper's Table 5.

    python benchmarks/losses.py

R50's shapes in training: one image of 1024x1024, 20 targets, 10 predictions of 100 queries and 133 classes;
the criterion alone, forward and backward, in fp32. Memory is the peak of the tensors that it creates.
"""

import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
from cpu_training import LARGE_SIDE, drawn_batch
from measure import MB, alternate, run_alone, table

from mask2former.modeling.loss.criterion import WHERE, SetCriterion
from mask2former.modeling.predictions import Prediction, Predictions
from mask2former.structures import Instances

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from peak_memory import PeakMemory

LAYERS, QUERIES, CLASSES, CHANNELS = 10, 100, 133, 256


def step(match_on: str, loss_on: str) -> Callable[[], None]:
    """Return the criterion's forward and backward pass on drawn predictions."""
    criterion = SetCriterion(
        num_classes=CLASSES,
        class_weight=2.0,
        mask_weight=5.0,
        dice_weight=5.0,
        no_object_weight=0.1,
        num_points=112 * 112,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
        match_on=match_on,
        loss_on=loss_on,
    )
    torch.manual_seed(0)
    cells = LARGE_SIDE // 4
    layers = [
        Prediction(torch.randn(1, QUERIES, CLASSES + 1), torch.randn(1, QUERIES, CHANNELS) / 16)
        for _ in range(LAYERS)
    ]
    features = torch.randn(1, CHANNELS, cells, cells)
    for tensor in (features, *(part for layer in layers for part in layer if part is not None)):
        tensor.requires_grad_()
    _, classes, masks = drawn_batch(LARGE_SIDE)
    size = (LARGE_SIDE, LARGE_SIDE)
    targets = [Instances(size, gt_classes=classes, gt_masks=masks)]

    def run() -> None:
        losses = criterion(Predictions(layers, features), targets, size, [0])
        torch.stack(list(losses.values())).sum().backward()

    return run


def report() -> str:
    """Return the table; see above."""
    sides = {ways: step(*ways) for ways in product(WHERE, WHERE)}
    seconds = alternate(sides, runs=3)
    rows = []
    for ways, run in sides.items():
        with PeakMemory() as memory:
            run()
        rows.append([*ways, f"{seconds[ways]:.2f} s", f"{memory.peak / MB:,.0f} MB"])
    head = ["matching on", "loss on", "forward and backward", "peak memory"]
    return table([head, *rows])


if __name__ == "__main__":
    run_alone(report)
