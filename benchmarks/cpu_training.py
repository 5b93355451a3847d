"""A training step of R50 at 512x512 with 20 targets, batch 1, fp32: against transformers and the products.

Both sides have the same weights, see the same image and targets, and do a whole step: forward, matching and
loss, backward, clipping, fused AdamW. transformers' batch norms are made constants, as ours are. Each side
draws the points of its loss itself, so the losses are compared as means over several draws.

The floor is what a step of ours multiplies, forward and backward, and nothing else. Memory is the peak of a
fresh process that makes a model and does three steps. "bf16" is SOLVER.AMP with that type, for the pixel
decoder too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from functools import partial
from statistics import mean, stdev
from typing import Any
from unittest.mock import patch

import torch
from measure import alternate, child_peak_mb, ratio, run_alone, table
from products import Products
from torch import Tensor, nn

from mask2former.config import load_config
from mask2former.modeling.layers import feed_forward

CONFIG = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
SIDE, LARGE_SIDE, TARGETS = 512, 1024, 20
RUNS, CHILD_STEPS, SEEDS = 5, 3, 4
RATE, CLIP = 1e-4, 0.01


def drawn_batch(side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a noise image (3, side, side), classes (TARGETS,) and elliptical masks (TARGETS, side, side)."""
    random = torch.Generator().manual_seed(0)
    image = torch.randint(256, (3, side, side), generator=random, dtype=torch.uint8)
    classes = torch.randint(133, (TARGETS,), generator=random)
    centers = torch.rand(TARGETS, 2, 1, 1, generator=random)
    radii = 0.05 + 0.3 * torch.rand(TARGETS, 2, 1, 1, generator=random)
    y, x = torch.meshgrid(*[(torch.arange(side) + 0.5) / side] * 2, indexing="ij")
    distance = (torch.stack((y, x)) - centers) / radii
    return image, classes, distance.square().sum(1) < 1


class Ours:
    """Our model, and its step, in fp32 or bf16."""

    def __init__(self, side: int, *, bf16: bool = False) -> None:
        from mask2former.engine.build import build_model
        from mask2former.structures import Instances

        torch.manual_seed(0)
        self.bf16 = bf16
        options = ["MODEL.DEVICE", "cpu", "SOLVER.AMP.PIXEL_DECODER", str(bf16)]
        self.model = build_model(load_config(CONFIG, options)).train()
        image, classes, masks = drawn_batch(side)
        targets = Instances((side, side), gt_classes=classes, gt_masks=masks)
        self.sample: dict[str, Any] = {"image": image, "instances": targets}
        self.update = updater(self.model)

    def loss(self, seed: int) -> Tensor:
        """Return the sum of all terms at the points of a seed."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            return torch.stack(list(self.model([{**self.sample, "seed": seed}]).values())).sum()

    def step(self, seed: int = 0) -> float:
        """Do a whole step, and return the loss before it."""
        return self.update(self.loss(seed))


class Theirs:
    """transformers' model, with our weights or random ones, and its step."""

    def __init__(self, side: int, ours: Ours | None = None) -> None:
        from transformers_side import transformers_model, with_weights_of

        cfg = load_config(CONFIG, ["MODEL.DEVICE", "cpu"])
        self.model = transformers_model(cfg) if ours is None else with_weights_of(ours.model, cfg)
        self.model.train()
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval().requires_grad_(False)
        image, classes, masks = drawn_batch(side)
        channels = (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
        center, scale = (torch.tensor(values).view(3, 1, 1) for values in channels)
        self.inputs = {
            "pixel_values": ((image - center) / scale)[None],
            "mask_labels": [masks.float()],
            "class_labels": [classes],
        }
        self.update = updater(self.model)

    def loss(self, seed: int) -> Tensor:
        """Return the sum of all terms at points drawn after seeding."""
        torch.manual_seed(seed)
        loss: Tensor = self.model(**self.inputs).loss.sum()
        return loss

    def step(self, seed: int = 0) -> float:
        """Do a whole step, and return the loss before it."""
        return self.update(self.loss(seed))


SIDES: dict[str, Callable[[int], Any]] = {
    "transformers": Theirs,
    "ours": Ours,
    "ours in bf16": partial(Ours, bf16=True),
}


def updater(model: nn.Module) -> Callable[[Tensor], float]:
    """Return the rest of a step: backward, clipping, AdamW; it returns the loss."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.05, fused=True)

    def update(loss: Tensor) -> float:
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return update


def products_of(ours: Ours) -> Callable[[], None]:
    """Return a function that does the products of our step, without recomputation."""
    kept = patch.object(feed_forward, "should_recompute", lambda x: False)
    with kept, Products() as products:
        ours.loss(0).backward()
    ours.model.zero_grad(set_to_none=True)
    return products.replay()


@torch.no_grad()
def spread(losses: Iterable[Tensor]) -> tuple[float, float]:
    """Return mean and standard deviation."""
    values = [loss.item() for loss in losses]
    return mean(values), stdev(values)


def agreement(ours: Any, theirs: Any) -> str:
    """Compare the losses of the same weights at points of several seeds."""
    with torch.no_grad():
        spreads = [spread(side.loss(seed) for seed in range(SEEDS)) for side in (ours, theirs)]
    (our_mean, our_spread), (their_mean, their_spread) = spreads
    return (
        f"- Loss at the start over {SEEDS} draws of points: ours {our_mean:.3f} (standard deviation "
        f"{our_spread:.3f}), transformers {their_mean:.3f} ({their_spread:.3f}); the means differ by "
        f"{abs(our_mean / their_mean - 1):.2%}."
    )


def peak(name: str, side: int) -> float:
    """Return the peak megabytes of a fresh process."""
    return child_peak_mb([sys.executable, __file__, "--child", name, str(side)])


def report() -> str:
    """Return the table; see above."""
    memory = {name: peak(name, SIDE) for name in SIDES}
    large_memory = peak("ours", LARGE_SIDE)
    ours, half = Ours(SIDE), Ours(SIDE, bf16=True)
    theirs = Theirs(SIDE, ours)
    lines = [agreement(ours, theirs)]
    floor = products_of(ours)
    steps = {"transformers": theirs.step, "ours": ours.step, "ours in bf16": half.step, "floor": floor}
    seconds = alternate(steps, RUNS)
    figures = {name: f"{seconds[name]:.2f} s, {memory[name]:.0f} MB" for name in SIDES}
    lines.append(f"- bf16 is {ratio(seconds['ours'], seconds['ours in bf16'])} as fast as fp32.")
    del theirs, half
    large = Ours(LARGE_SIDE)
    large_seconds = alternate({"ours": large.step}, 1)["ours"]
    rows = [
        ["training step", "transformers", "ours", "faster", "memory", "floor", "over the floor"],
        [
            f"{SIDE}x{SIDE}",
            figures["transformers"],
            figures["ours"],
            ratio(seconds["transformers"], seconds["ours"]),
            ratio(memory["ours"], memory["transformers"]),
            f"{seconds['floor']:.2f} s",
            ratio(seconds["ours"], seconds["floor"]),
        ],
        [
            f"{SIDE}x{SIDE}, bf16",
            "",
            figures["ours in bf16"],
            ratio(seconds["transformers"], seconds["ours in bf16"]),
            ratio(memory["ours in bf16"], memory["transformers"]),
            "",
            "",
        ],
        [f"{LARGE_SIDE}x{LARGE_SIDE}", "", f"{large_seconds:.2f} s, {large_memory:.0f} MB", "", "", "", ""],
    ]
    return "\n".join([table(rows), "", *lines])


def train_a_little(name: str, side: int) -> None:
    """Do a few steps in the process whose memory is measured."""
    built = SIDES[name](side)
    for _ in range(CHILD_STEPS):
        built.step()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        train_a_little(arguments.child[0], int(arguments.child[1]))
    else:
        run_alone(report)
