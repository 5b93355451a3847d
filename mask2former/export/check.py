"""An exported file compared with the model, at sizes and batches that it was not exported with."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from tabulate import tabulate
from torch import Tensor

from mask2former.export.graph import Graph
from mask2former.export.runtimes import Exported
from mask2former.utils.messages import InputError

TOLERANCE = 1e-4  # of logits up to 10
RELATIVE = 1e-5  # of the largest logit, where it is more: those of trained models reach a hundred
HALF_RELATIVE = 0.05  # weights have 11 bits; the check computes in float32, as not every processor would
BATCHES = (1, 3, 1)
SIDES = ((8, 11), (4, 7), (3, 2))  # in multiples of 32


class ExportError(InputError):
    """A file whose logits are not those of the model."""


class Difference(NamedTuple):
    """The largest differences of logits for images of one shape (B, 3, H, W), and what is allowed."""

    shape: tuple[int, ...]
    class_logits: float
    mask_logits: float
    allowed_class: float
    allowed_mask: float

    @property
    def is_small(self) -> bool:
        """Return True if both are allowed; NaN is not."""
        return self.class_logits <= self.allowed_class and self.mask_logits <= self.allowed_mask


@torch.no_grad()
def measure(graph: Graph, exported: Exported) -> list[Difference]:
    """Compare a file, as its runtime computes it, with the model in float32, on images of noise."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for batch, sides in zip(BATCHES, SIDES, strict=True):
        images = torch.randn(batch, 3, *(32 * side for side in sides), generator=generator)
        pairs = zip(graph(images), exported.logits(images), strict=True)
        classes, masks = (_compare(wanted, given, exported.metadata.half) for wanted, given in pairs)
        found.append(Difference(tuple(images.shape), classes[0], masks[0], classes[1], masks[1]))
    return found


def _compare(wanted: Tensor, given: Tensor, half: bool) -> tuple[float, float]:
    """Return the largest difference and the allowed one; infinite for another shape."""
    largest = float(wanted.abs().max())
    allowed = HALF_RELATIVE * largest if half else max(TOLERANCE, RELATIVE * largest)
    if wanted.shape != given.shape:
        return float("inf"), allowed
    return float((wanted - given).abs().max()), allowed


def require_small(differences: Sequence[Difference], name: str) -> None:
    """Raise ExportError if a file's logits differ from the model's by more than is allowed."""
    for difference in differences:
        if not difference.is_small:
            shape = " x ".join(map(str, difference.shape))
            raise ExportError(
                f"{name}: for images {shape} class logits differ from the model's by "
                f"{difference.class_logits:.2g}, mask logits by {difference.mask_logits:.2g}; allowed are "
                f"{difference.allowed_class:.2g} and {difference.allowed_mask:.2g}. The file was not kept; "
                "--no-check keeps it"
            )


def report(path: Path, suffixes: Sequence[str], differences: Sequence[Difference]) -> str:
    """Return what a user wants to know of a written file: how exact and how large it is."""
    megabytes = sum(path.with_suffix(suffix).stat().st_size for suffix in suffixes) / 1e6
    checked = f"largest differences from the model:\n{table(differences)}\n" if differences else ""
    return f"{checked}{path}: {megabytes:.1f} MB"


def table(differences: Sequence[Difference]) -> str:
    """Return the differences as a table."""
    rows = [
        (" x ".join(map(str, d.shape)), f"{d.class_logits:.1e}", f"{d.mask_logits:.1e}") for d in differences
    ]
    return tabulate(rows, ("images", "class logits", "mask logits"), disable_numparse=True)
