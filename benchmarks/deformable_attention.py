"""Multi-scale deformable attention on this machine: the compiled operator against PyTorch's grid_sample.

The shape is that of an encoder layer at 1024x1024: maps of 128x128, 64x64 and 32x32 cells, as many queries,
8 heads of 32 channels, 4 points, one image, float32.

Shapes: `Q` queries (the cells of all maps), `H` heads, `L` levels, `P` points, `D` channels of a head.
"""

import math
from collections.abc import Callable

import torch
from measure import alternate, ratio, run_alone, table
from torch import Tensor

from mask2former.ops import cpu, reference

SHAPES = ((128, 128), (64, 64), (32, 32))
HEADS, POINTS, CHANNELS = 8, 4, 32
RUNS = 5


def report() -> str:
    """Return medians of both: near and far points, plain and fused, without and with backward."""
    rows = [["points", "form", "pass", "grid_sample, ms", "compiled, ms", "ratio"]]
    for name, offsets in (("near their query", near_offsets()), ("anywhere", uniform_offsets())):
        for form, arguments in (("plain", plain(offsets)), ("fused", fused(offsets))):
            rows += [[name, form, *row] for row in compare(arguments)]
    return (
        f"ms_deform_attn, maps {SHAPES}, {HEADS} heads of {CHANNELS} channels, {POINTS} points, one image; "
        f"medians of {RUNS} alternating runs.\n\n{table(rows)}"
    )


def compare(arguments: tuple[Tensor, ...]) -> list[list[str]]:
    """Return one row for forward, one for forward and backward; the results must agree."""
    value, *others = arguments
    inputs = reference.AttentionInputs(value, SHAPES, *others)
    grad = torch.randn(1, others[0].shape[1], HEADS * CHANNELS)
    backends = {"torch": reference, "cpu": cpu}

    def forward(backend) -> Callable[[], Tensor]:
        return lambda: backend.forward(inputs)

    def both(backend) -> Callable[[], object]:
        return lambda: (forward(backend)(), backend.backward(grad, inputs))

    torch.testing.assert_close(forward(cpu)(), forward(reference)(), atol=1e-4, rtol=1e-4)
    rows = []
    for name, make in (("forward", forward), ("forward and backward", both)):
        seconds = alternate({key: make(backend) for key, backend in backends.items()}, runs=RUNS)
        times = [f"{1e3 * seconds[key]:.1f}" for key in backends]
        rows.append([name, *times, ratio(seconds["torch"], seconds["cpu"])])
    return rows


def plain(offsets: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    """Return value, locations, probabilities, and no reference."""
    value, logits = value_and_logits()
    locations = query_centers() + offsets / sides()[:, None]
    return value, locations.contiguous(), logits.flatten(3).softmax(-1).view_as(logits), None


def fused(offsets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return value, offsets, logits and references."""
    value, logits = value_and_logits()
    return value, offsets, logits, query_centers().view(1, -1, 1, 2)


def value_and_logits() -> tuple[Tensor, Tensor]:
    """Draw values (1, Q, H, D) and logits (1, Q, H, L, P)."""
    cells = sum(height * width for height, width in SHAPES)
    return torch.randn(1, cells, HEADS, CHANNELS), torch.randn(1, cells, HEADS, len(SHAPES), POINTS)


def near_offsets() -> Tensor:
    """Draw offsets (1, Q, H, L, P, 2) in cells: 1 to P in the head's direction, plus a cell of noise."""
    angles = torch.arange(HEADS) * (2 * math.pi / HEADS)
    directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
    directions /= directions.abs().amax(-1, keepdim=True)
    steps = directions[:, None, None] * torch.arange(1, POINTS + 1)[:, None]
    return steps + torch.randn(1, query_centers().shape[1], HEADS, len(SHAPES), POINTS, 2)


def uniform_offsets() -> Tensor:
    """Draw offsets to points anywhere on the maps, the worst case for caches."""
    centers = query_centers()
    locations = torch.rand(1, centers.shape[1], HEADS, len(SHAPES), POINTS, 2)
    return (locations - centers) * sides()[:, None]


def query_centers() -> Tensor:
    """Return each cell's center in [0, 1], x then y: (1, Q, 1, 1, 1, 2)."""
    levels = []
    for height, width in SHAPES:
        x, y = (torch.arange(width) + 0.5) / width, (torch.arange(height) + 0.5) / height
        levels.append(torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).view(-1, 2))
    return torch.cat(levels)[None, :, None, None, None]


def sides() -> Tensor:
    """Return width and height of each map: (L, 2)."""
    return torch.tensor([(width, height) for height, width in SHAPES], dtype=torch.float32)


if __name__ == "__main__":
    run_alone(report)
