"""Checks of the operator and the model on a device, which benchmarks/gpu.py runs before it measures.

Shapes: `B` images, `S` cells of all maps together, `Lq` queries, `L` levels, `P` points, `D` channels
of a head.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measure import table
from torch import Tensor

from mask2former.config import load_config
from mask2former.engine.build import build_model
from mask2former.ops import backends, reference
from mask2former.ops.reference import AttentionInputs

TESTS = Path(__file__).parents[1] / "tests" / "support"
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # of the largest number


class Sizes(NamedTuple):
    """Sizes of the operator's inputs and of the model's image."""

    shapes: tuple[tuple[int, int], ...] = ((128, 128), (64, 64), (32, 32))
    heads: int = 8
    points: int = 4
    channels: int = 32
    side: int = 1024
    targets: int = 20

    @property
    def cells(self) -> int:
        """Return the cells of all maps: `S`, and here also `Lq`."""
        return sum(height * width for height, width in self.shapes)


class Inputs(NamedTuple):
    """The fused operator's arguments, a gradient of its output, and the same for others.

    `places` (B, Lq, heads, L, P, 2) are x, y in [0, 1]; `logits` the weights in value's type; `sides` (L, 2)
    heights and widths; `starts` (L,) first cells.
    """

    value: Tensor
    shapes: tuple[tuple[int, int], ...]
    points: Tensor
    weights: Tensor
    reference: Tensor
    grad: Tensor
    places: Tensor
    logits: Tensor
    sides: Tensor
    starts: Tensor


def draw(sizes: Sizes, batch: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Inputs:
    """Draw points near a grid of references, as in the pixel decoder, some of them outside."""
    generator = torch.Generator(device).manual_seed(seed)
    queries, levels = sizes.cells, len(sizes.shapes)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device)

    centers = [
        torch.stack(torch.meshgrid(_centers(width), _centers(height), indexing="xy"), dim=-1).view(-1, 2)
        for height, width in sizes.shapes
    ]
    angles = torch.arange(sizes.heads, device=device) * (2 * torch.pi / sizes.heads)
    steps = torch.arange(1, sizes.points + 1, device=device)
    directions = torch.stack([angles.cos(), angles.sin()], dim=-1)[:, None, None, :] * steps[:, None]
    points = directions + normal(batch, queries, sizes.heads, levels, sizes.points, 2)
    weights = normal(batch, queries, sizes.heads, levels, sizes.points)
    origin = torch.cat(centers)[None, :, None].to(device)
    sides = torch.tensor(sizes.shapes, device=device)
    return Inputs(
        value=normal(batch, queries, sizes.heads, sizes.channels).to(dtype),
        shapes=sizes.shapes,
        points=points,
        weights=weights,
        reference=origin,
        grad=normal(batch, queries, sizes.heads * sizes.channels).to(dtype),
        places=origin[:, :, None, :, None] + points / sides.flip(-1)[:, None],
        logits=weights.to(dtype),
        sides=sides,
        starts=sides.prod(1).cumsum(0) - sides.prod(1),
    )


def _centers(side: int) -> Tensor:
    return (torch.arange(side) + 0.5) / side


def check_operator(device: torch.device) -> str:
    """Return the largest relative errors of each backend; raise if one is too large."""
    rows = [["backend", "type", "form", "output", "of values", "of points", "of weights"]]
    sizes = Sizes(shapes=((20, 31), (10, 16), (5, 8)))
    for name in backends.BACKENDS:
        if name not in (device.type, "torch"):
            continue
        reason = backends.BACKENDS[name].why_unavailable()
        if reason:
            raise RuntimeError(f"backend {name}: {reason}")
        for dtype, tolerance in TOLERANCE.items():
            for form, grad, inputs in _forms(draw(sizes, 2, dtype, device)):
                errors = _errors(name, grad, inputs)
                rows.append(
                    [name, str(dtype).removeprefix("torch."), form, *(f"{error:.1e}" for error in errors)]
                )
                limits = (tolerance, tolerance, 1e-4, 1e-4)
                if not all(error <= limit for error, limit in zip(errors, limits, strict=True)):
                    raise RuntimeError(f"too far from PyTorch in float64:\n{table([rows[0], rows[-1]])}")
    return table(rows)


def _forms(inputs: Inputs) -> Iterator[tuple[str, Tensor, AttentionInputs]]:
    """Yield the same sampling, fused and plain: name, gradient and inputs."""
    value, shapes, points, weights, origin, grad, places, *_ = inputs
    yield "fused", grad, AttentionInputs(value, shapes, points, weights, origin)
    probabilities = weights.flatten(3).softmax(-1).view_as(weights)
    yield "plain", grad, AttentionInputs(value, shapes, places, probabilities)


def _errors(name: str, grad: Tensor, inputs: AttentionInputs) -> list[float]:
    """Return the errors of the output and of the three gradients."""
    backend = backends.BACKENDS[name]
    doubled = AttentionInputs(*(item.double() if isinstance(item, Tensor) else item for item in inputs))
    found = (backend.forward(inputs), *backend.backward(grad, inputs))
    wanted = (reference.forward(doubled), *reference.backward(grad.double(), doubled))
    kept = (True, True, _is_between_cells(*doubled[1:]), True)
    return [
        float(((ours.double() - theirs) * mask).abs().max() / theirs.abs().max())
        for ours, theirs, mask in zip(found, wanted, kept, strict=True)
    ]


def _is_between_cells(shapes: Any, points: Tensor, weights: Tensor, origin: Tensor | None) -> Tensor:
    """Return where both coordinates are away from a cell's center, where the points' gradient jumps."""
    sides = torch.tensor([[width, height] for height, width in shapes], device=points.device)[:, None]
    cells = points * sides if origin is None else origin[:, :, None, :, None] * sides + points
    return ((cells - 0.5 - (cells - 0.5).round()).abs() > 1e-4).all(-1, keepdim=True)


def check_model(device: torch.device) -> str:
    """Compare R50 on the device with its recorded answers, and gradients with those of the CPU."""
    sys.path.append(str(TESTS))
    from golden import fill, load_golden

    torch.backends.cudnn.allow_tf32 = False
    golden = load_golden("coco_panoptic_R50")
    model = fill(
        build_model(load_config(golden.config["file"], [*golden.config["opts"], "MODEL.DEVICE", "cpu"]))
    )
    images = model._images(golden.inputs())
    on_cpu = _gradients(model, images)
    model.to(device)
    with torch.no_grad():
        predictions = model.eval().network(images.to(device))
    logits, masks = predictions.layers[-1].class_logits.cpu(), predictions.mask_logits().cpu()
    errors = golden.error("pred_logits", logits), golden.error("pred_masks", masks)
    on_device = _gradients(model, images.to(device))
    torch.backends.cudnn.allow_tf32 = True  # as it is by default
    worst = max(
        float((ours.cpu() - theirs).norm() / theirs.norm().clamp(min=1e-6))
        for ours, theirs in zip(on_device, on_cpu, strict=True)
    )
    line = (
        f"R50: logits off by {errors[0]:.1e}, masks {errors[1]:.1e}, gradients by {worst:.1e} of their norm"
    )
    # On the CPU logits and masks are within 1e-3 and 1e-2. Elsewhere a mask logit may round to the other side
    # of zero, and attention then sees another cell.
    if not (errors[0] < 1e-2 and errors[1] < 1e-1 and worst < 1e-2):
        raise RuntimeError(line)
    return line


def _gradients(model: torch.nn.Module, images: Tensor) -> list[Tensor]:
    """Return the gradients of the pixel decoder for fixed weights of the mask features."""
    decoder = model.eval().sem_seg_head.pixel_decoder
    features, _ = decoder(model.backbone(images))
    weighing = torch.randn(features.shape, generator=torch.Generator().manual_seed(0)).to(features)
    parameters = [parameter for parameter in decoder.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad((features * weighing).sum(), parameters, allow_unused=True)
    return [gradient for gradient in gradients if gradient is not None]
