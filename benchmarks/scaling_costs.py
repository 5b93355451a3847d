"""Compute what a GPU sends in a training step, and what it keeps besides activations: docs/scaling_costs.md.

    python benchmarks/scaling_costs.py

The formulas are the functions below, applied to the shapes of the models' parameters. All is float32, as the
engine keeps and sends it: autocast rounds weights where they are used.

Shapes: `n` processes, one per GPU; `P` parameters, of which `U` are in blocks that SOLVER.STRATEGY fsdp
gathers and frees one by one, `u` in the largest of them, and `R = P - U` in the rest, which stays gathered;
`s(X)` one process's shard of X.
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
    """Shapes of a model's parameters: of each block that fsdp gathers by itself, and of the rest."""

    units: list[list[torch.Size]]
    rest: list[torch.Size]

    @property
    def in_units(self) -> list[torch.Size]:
        """Return the shapes of all blocks."""
        return [shape for unit in self.units for shape in unit]

    @property
    def parameters(self) -> int:
        """Return P."""
        return elements(self.in_units) + elements(self.rest)


def weights_of(model: nn.Module) -> Weights:
    """Return the trainable parameters of `model` as SOLVER.STRATEGY fsdp groups them."""
    modules = [module for module in model.modules() if isinstance(module, UNITS)]
    units = [[p.shape for p in module.parameters() if p.requires_grad] for module in modules]
    inside = {parameter for module in modules for parameter in module.parameters()}
    rest = [p.shape for p in model.parameters() if p.requires_grad and p not in inside]
    return Weights([unit for unit in units if unit], rest)


def weights_of_config(config: str) -> Weights:
    """Return the parameters of a config's model, which is built without data."""
    with torch.device("meta"):
        return weights_of(build_model(load_config(config, ["MODEL.DEVICE", "meta"])))


def elements(shapes: Shapes) -> int:
    """Return the total number of elements."""
    return sum(shape.numel() for shape in shapes)


def shard(shapes: Shapes, n: int) -> int:
    """Return the most elements that one of `n` processes keeps: ceil(rows / n) rows of each parameter.

    Parameters are split along the first dimension, so 256 rows are spread over 256 processes at most.
    """
    return sum(-(-shape[0] // n) * (shape.numel() // shape[0]) for shape in shapes)


def ddp_sent(weights: Weights, n: int) -> float:
    """Return the bytes that a process sends per step: the ring all-reduce of gradients, 2 (n-1)/n x 4 P.

    Accumulation changes nothing: gradients are exchanged with the last micro-batch only.
    """
    return 2 * (n - 1) / n * BYTES * weights.parameters


def fsdp_sent(weights: Weights, n: int) -> float:
    """Return the bytes that a process sends per micro-batch, in rings: (n-1) x 4 (3 s(U) + 2 s(R)).

    Blocks are gathered in the forward and again in the backward pass, the rest once; all gradients are
    reduced and scattered. If n divides all rows, n s(X) is X.
    """
    passes = 3 * shard(weights.in_units, n) + 2 * shard(weights.rest, n)
    return (n - 1) * BYTES * passes


def ddp_kept(weights: Weights) -> float:
    """Return the bytes of weights, gradients and AdamW's states: 16 P."""
    return STATE * weights.parameters


def fsdp_kept(weights: Weights, n: int) -> float:
    """Return the bytes of shards, 16 s(P), and of what is whole at the peak: 8 R + 16 u.

    Whole are weights and gradients of the rest, the weights of two blocks, since the next is gathered while
    one computes, and the gradients of one block twice: as computed, and as laid out for the scatter.
    """
    shards = shard(weights.in_units, n) + shard(weights.rest, n)
    largest = max(map(elements, weights.units), default=0)
    return STATE * shards + 2 * BYTES * elements(weights.rest) + 4 * BYTES * largest


def parameters_table() -> str:
    """Return the table of P, U, u and R."""
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
    """Return the table of megabytes (10**6 bytes) per GPU, by model and number of GPUs."""
    rows = [["", "GPUs", "ddp: sent a step", "fsdp: sent a step", "ddp: kept", "fsdp: kept"]]
    for name, config in CONFIGS.items():
        found = weights_of_config(config)
        for n in GPUS:
            costs = (ddp_sent(found, n), fsdp_sent(found, n), ddp_kept(found), fsdp_kept(found, n))
            rows.append([name, str(n), *(f"{cost / MB:,.0f} MB" for cost in costs)])
    return table(rows)


if __name__ == "__main__":
    print(parameters_table(), costs_table(), sep="\n\n")
