"""Data structures shared by data, model and evaluation: feature map shapes and the instances of an image.

Shapes: `N` instances of one image, `H, W` the image's sides in pixels, `m` runs of a mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor


class ShapeSpec(NamedTuple):
    """Channels and stride (input pixels per cell) of a feature map."""

    channels: int
    stride: int = 1


def runs(*values: np.ndarray) -> np.ndarray:
    """Return the runs of equal values in a flat array: (m, 2) int64, first index and the one after the last.

    With several arrays of one length, a run ends where any of them changes. Label maps have some thousands of
    runs where they have some 100,000 pixels, so work that is done once a run is nearly free.
    """
    changes = np.logical_or.reduce([flat[1:] != flat[:-1] for flat in values])
    edges, size = np.flatnonzero(changes) + 1, len(values[0])
    return np.stack([np.append(0, edges), np.append(edges, size)], axis=1)[:size]


class RunLengthMasks:
    """Masks (N, H, W) of one image as runs of pixels, which take kilobytes.

    Iteration and an integer index give dense masks (H, W) bool; `dense` gives all at once. A slice or tensor
    index selects masks.

    Args:
        size: (H, W).
        runs: of each mask (m, 2) int64, first pixel and the one after the last; pixels are counted down the
            columns, as in COCO. Runs are in order, with a gap between one and the next.
    """

    def __init__(self, size: tuple[int, int], runs: Sequence[Tensor]) -> None:
        self.size, self.runs = size, list(runs)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (N, H, W)."""
        return len(self.runs), *self.size

    def __len__(self) -> int:
        return len(self.runs)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: Tensor | slice) -> RunLengthMasks: ...
    def __getitem__(self, index: int | Tensor | slice) -> Tensor | RunLengthMasks:
        if isinstance(index, int):
            return self._mask(self.runs[index])
        chosen = torch.arange(len(self))[index.cpu() if isinstance(index, Tensor) else index]
        return RunLengthMasks(self.size, [self.runs[i] for i in chosen.tolist()])

    def __iter__(self) -> Iterator[Tensor]:
        return map(self._mask, self.runs)

    def _mask(self, runs: Tensor) -> Tensor:
        """Return the mask (H, W) bool of runs (m, 2)."""
        height, width = self.size
        steps = torch.zeros(height * width + 1, dtype=torch.int8, device=runs.device)
        steps[runs[:, 0]], steps[runs[:, 1]] = 1, -1
        return steps[:-1].cumsum(0, dtype=torch.int8).bool().view(width, height).T

    def dense(self) -> Tensor:
        """Return the masks (N, H, W) bool."""
        device = self.runs[0].device if self.runs else None
        masks = torch.empty(self.shape, dtype=torch.bool, device=device)
        for mask, dense in zip(masks, self, strict=True):
            mask[:] = dense
        return masks

    def areas(self) -> Tensor:
        """Return the areas (N,) int64 in pixels."""
        return torch.tensor([int((runs[:, 1] - runs[:, 0]).sum()) for runs in self.runs], dtype=torch.int64)

    def boxes(self) -> Tensor:
        """Return tight boxes (N, 4), float32 XYXY in pixels, right and bottom exclusive; zeros if empty."""
        return torch.tensor([self._box(runs) for runs in self.runs], dtype=torch.float32).view(-1, 4)

    def _box(self, runs: Tensor) -> list[int]:
        if not len(runs):
            return [0, 0, 0, 0]
        height = self.size[0]
        first, last = runs[:, 0], runs[:, 1] - 1
        top, bottom = int((first % height).min()), int((last % height).max())
        if (first // height != last // height).any():  # a run continues in the next column
            top, bottom = 0, height - 1
        return [int(first[0]) // height, top, int(last[-1]) // height + 1, bottom + 1]

    def to(self, device: torch.device | str) -> RunLengthMasks:
        """Return the masks on `device`."""
        return RunLengthMasks(self.size, [runs.to(device) for runs in self.runs])


class Instances:
    """Named fields with one entry per instance of an image.

    Predictions carry `pred_masks` (N, H, W) bool or `RunLengthMasks`, `pred_boxes` (N, 4) float XYXY in
    pixels, `scores` (N,) and `pred_classes` (N,) int64; targets carry `gt_classes` (N,) int64 and `gt_masks`
    (N, H, W) bool.
    """

    def __init__(self, image_size: tuple[int, int], **fields: Any) -> None:
        self.image_size = image_size
        self._fields: dict[str, Any] = {}
        for name, value in fields.items():
            self.set(name, value)

    def set(self, name: str, value: Any) -> None:
        """Add or replace a field; its length must equal that of the existing fields."""
        if self._fields and len(value) != len(self):
            raise ValueError(f"field '{name}' has {len(value)} entries, the other fields have {len(self)}")
        self._fields[name] = value

    def has(self, name: str) -> bool:
        """Return True if the field exists."""
        return name in self._fields

    def get_fields(self) -> dict[str, Any]:
        """Return all fields by name."""
        return self._fields

    def __getattr__(self, name: str) -> Any:
        fields = self.__dict__.get("_fields", {})
        if name not in fields:
            raise AttributeError(f"no field '{name}' among {sorted(fields)}")
        return fields[name]

    def __len__(self) -> int:
        return len(next(iter(self._fields.values()), ()))

    def __getitem__(self, index: Tensor | slice) -> Instances:
        return Instances(self.image_size, **{name: value[index] for name, value in self._fields.items()})

    def __iter__(self) -> Iterator[Instances]:
        return (self[slice(i, i + 1)] for i in range(len(self)))

    def to(self, device: torch.device | str) -> Instances:
        """Return the instances with tensors and masks on `device`."""
        movable = (Tensor, RunLengthMasks)
        moved = {k: v.to(device) if isinstance(v, movable) else v for k, v in self._fields.items()}
        return Instances(self.image_size, **moved)

    def __repr__(self) -> str:
        return f"Instances({len(self)} of {self.image_size}, fields: {sorted(self._fields)})"
