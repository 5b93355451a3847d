"""What a GPU sends in a training step, and keeps besides activations: computed, for docs/scaling.md.

    python benchmarks/scaling_costs.py

The counts are those of the models' real parameters, by shape; the formulae are the functions below. All is
float32, as the engine keeps and exchanges it: autocast rounds weights where they are used.

Shapes: `n` processes, one a GPU; `P` parameters, of which `U` belong to blocks that SOLVER.STRATEGY fsdp
gathers and frees one by one, `u` to the largest of them, and `R = P - U` to the rest, which stays gathered;
`s(X)` the share of one process in X.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from measure import MB, table
from torch import nn

from mask2former.config import load_config
from mask2former.engine.build import build_model
from mask2former.engine.parallel import UNITS

CONFIGS = {
    "R50, 100 queries": "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml",
    "Swin-L, 200 queries": "coco/panoptic-segmentation/swin/maskformer2_swin_large_IN21k_384_bs16_100ep.yaml",
}
GPUS = (8, 64, 512)
BYTES = 4  # of a weight, of its gradient, and of each of AdamW's two states
STATE = 4 * BYTES  # of a parameter: those four together

Shapes = Sequence[torch.Size]


class Weights(NamedTuple):
    """The shapes of a model's parameters: of each block that is gathered by itself, and of all the rest."""

    units: list[list[torch.Size]]
    rest: list[torch.Size]

    @property
    def in_units(self) -> list[torch.Size]:
        """Those of all blocks."""
        return [shape for unit in self.units for shape in unit]

    @property
    def parameters(self) -> int:
        """P."""
        return elements(self.in_units) + elements(self.rest)


def weights_of(model: nn.Module) -> Weights:
    """The trainable parameters of `model`, as SOLVER.STRATEGY fsdp groups them."""
    modules = [module for module in model.modules() if isinstance(module, UNITS)]
    units = [[p.shape for p in module.parameters() if p.requires_grad] for module in modules]
    inside = {parameter for module in modules for parameter in module.parameters()}
    rest = [p.shape for p in model.parameters() if p.requires_grad and p not in inside]
    return Weights([unit for unit in units if unit], rest)


def weights_of_config(config: str) -> Weights:
    """The same of a config's model, which is built without data."""
    with torch.device("meta"):
        return weights_of(build_model(load_config(config, ["MODEL.DEVICE", "meta"])))


def elements(shapes: Shapes) -> int:
    """How many numbers tensors of these shapes have."""
    return sum(shape.numel() for shape in shapes)


def share(shapes: Shapes, n: int) -> int:
    """The most numbers that one of `n` processes keeps: ceil(rows / n) rows of each parameter.

    They are cut along their first side only: one of 256 rows is spread over 256 processes at most.
    """
    return sum(-(-shape[0] // n) * (shape.numel() // shape[0]) for shape in shapes)


def ddp_sent(weights: Weights, n: int) -> float:
    """Bytes that a process sends in a step: the gradients' all-reduce as a ring, 2 (n-1)/n x 4 P.

    Accumulation changes nothing: only the last piece's backward pass exchanges.
    """
    return 2 * (n - 1) / n * BYTES * weights.parameters


def fsdp_sent(weights: Weights, n: int, pieces: int = 1) -> float:
    """Bytes that a process sends in a step of `pieces`, as rings: (n-1) x 4 (3 s(U) + 2 s(R)) in each.

    Blocks are gathered forward and once more backward, the rest once; all gradients are reduced and
    scattered. Where n divides all rows, n s(X) is X.
    """
    passes = 3 * share(weights.in_units, n) + 2 * share(weights.rest, n)
    return pieces * (n - 1) * BYTES * passes


def ddp_kept(weights: Weights) -> float:
    """Bytes of weights, gradients and AdamW's states: 16 P."""
    return STATE * weights.parameters


def fsdp_kept(weights: Weights, n: int) -> float:
    """Bytes of the same in shares, 16 s(P), and of what is whole at the peak: 8 R + 16 u.

    Those are weights and gradients of the rest; of blocks two with their weights, as the next is gathered
    while one computes, and one with its gradients, twice: as computed, and laid out to be scattered.
    """
    shares = share(weights.in_units, n) + share(weights.rest, n)
    largest = max(map(elements, weights.units), default=0)
    return STATE * shares + 2 * BYTES * elements(weights.rest) + 4 * BYTES * largest


def parts_table() -> str:
    """The letters' values."""
    rows = [["", "P", "U", "u", "R"]]
    for name, config in CONFIGS.items():
        found = weights_of_config(config)
        counts = [
            found.parameters,
            elements(found.in_units),
            max(map(elements, found.units)),
            elements(found.rest),
        ]
        rows.append([name, *(f"{count / 1e6:.2f} M" for count in counts)])
    return table(rows)


def costs_table() -> str:
    """Megabytes (10**6 bytes) a GPU by model and number of GPUs."""
    rows = [["", "GPUs", "ddp: sent a step", "fsdp: sent a step", "ddp: kept", "fsdp: kept"]]
    for name, config in CONFIGS.items():
        found = weights_of_config(config)
        for n in GPUS:
            costs = (ddp_sent(found, n), fsdp_sent(found, n), ddp_kept(found), fsdp_kept(found, n))
            rows.append([name, str(n), *(f"{cost / MB:,.0f} MB" for cost in costs)])
    return table(rows)


if __name__ == "__main__":
    print(parts_table(), costs_table(), sep="\n\n")
