"""What travels between data, model and evaluation: the shape of a feature map, and an image's instances.

Letters: `N` instances of one image, `H, W` the image's sides in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor


class ShapeSpec(NamedTuple):
    """Channels and stride (input pixels per cell) of a feature map."""

    channels: int
    stride: int = 1


class Instances:
    """Named fields with one entry for each instance of an image.

    Predictions carry `pred_masks` (N, H, W) bool, `pred_boxes` (N, 4) float XYXY in pixels, `scores` (N,)
    and `pred_classes` (N,) int64; targets carry `gt_classes` (N,) int64 and `gt_masks` (N, H, W) bool.
    """

    def __init__(self, image_size: tuple[int, int], **fields: Any) -> None:
        self.image_size = image_size
        self._fields: dict[str, Any] = {}
        for name, value in fields.items():
            self.set(name, value)

    def set(self, name: str, value: Any) -> None:
        """Add or replace a field; its length must be that of the fields already here."""
        if self._fields and len(value) != len(self):
            raise ValueError(f"field '{name}' has {len(value)} entries, the other fields have {len(self)}")
        self._fields[name] = value

    def has(self, name: str) -> bool:
        """Whether the field exists."""
        return name in self._fields

    def get_fields(self) -> dict[str, Any]:
        """All fields by name."""
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
        """The same with every tensor field on `device`."""
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in self._fields.items()}
        return Instances(self.image_size, **moved)

    def __repr__(self) -> str:
        return f"Instances({len(self)} of {self.image_size}, fields: {sorted(self._fields)})"
