"""Data structures shared by data, model and evaluation: feature map shapes and the instances of an image.

Shapes: `N` instances of one image, `H, W` the image's sides in pixels, `m` runs of a mask.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

Indices = slice | Tensor | np.ndarray | list[int] | list[bool]


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


def equal(first: Any, second: Any) -> bool:
    """Return True if two values, also arrays, tensors and containers of them, hold the same."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.shape == second.shape and bool((first.cpu() == second.cpu()).all())
    if isinstance(first, Tensor | np.ndarray) or isinstance(second, Tensor | np.ndarray):
        return type(first) is type(second) and np.array_equal(first, second)
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    return bool(first == second)


class Boxes(Tensor):
    """Boxes (N, 4), float XYXY in pixels: a tensor that also has the attribute of Detectron2's class."""

    @property
    def tensor(self) -> Tensor:
        """Return the boxes as a plain tensor."""
        return self.as_subclass(Tensor)

    def __deepcopy__(self, memo: dict[int, Any]) -> Boxes:
        """Copy; torch's own method fails for a subclass of empty storage or of inference mode."""
        return deepcopy(self.tensor, memo).as_subclass(Boxes)


class RunLengthMasks:
    """Masks (N, H, W) of one image as runs of pixels, which take kilobytes.

    Iteration and an integer index give dense masks (H, W) bool; `dense` gives all at once, and `np.asarray`
    the same as an array. A slice, list or tensor index selects masks.

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

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RunLengthMasks):
            return NotImplemented
        return equal([self.size, self.runs], [other.size, other.runs])

    def __repr__(self) -> str:
        return f"RunLengthMasks({len(self)} of {self.size})"

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: Indices) -> RunLengthMasks: ...
    def __getitem__(self, index: int | Indices) -> Tensor | RunLengthMasks:
        if not isinstance(index, slice) and np.ndim(index) == 0:
            return self.columns(operator.index(index), 0, self.size[1])  # type: ignore[arg-type]
        chosen = torch.arange(len(self))[index.cpu() if isinstance(index, Tensor) else index]
        return RunLengthMasks(self.size, [self.runs[i] for i in chosen.tolist()])

    def __iter__(self) -> Iterator[Tensor]:
        return (self.columns(index, 0, self.size[1]) for index in range(len(self)))

    def columns(self, index: int, left: int, right: int) -> Tensor:
        """Return the columns `left` to `right` (exclusive) of one mask, (H, right - left) bool."""
        height = self.size[0]
        runs = self.runs[index].clamp(left * height, right * height) - left * height
        runs = runs[runs[:, 0] < runs[:, 1]]
        steps = torch.zeros((right - left) * height + 1, dtype=torch.int8, device=runs.device)
        steps[runs[:, 0]], steps[runs[:, 1]] = 1, -1
        return steps[:-1].cumsum_(0).view(torch.bool).view(right - left, height).T

    def dense(self) -> Tensor:
        """Return the masks (N, H, W) bool."""
        device = self.runs[0].device if self.runs else None
        masks = torch.empty(self.shape, dtype=torch.bool, device=device)
        for mask, dense in zip(masks, self, strict=True):
            mask[:] = dense
        return masks

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.dense().cpu().numpy().astype(dtype or bool)

    def __getattr__(self, name: str) -> Any:
        advice = "these masks are runs of pixels; `.dense()` gives them as a tensor (N, H, W)"
        raise AttributeError(f"no attribute '{name}': {advice}")

    def areas(self) -> Tensor:
        """Return the areas (N,) int64 in pixels."""
        return torch.tensor([int((runs[:, 1] - runs[:, 0]).sum()) for runs in self.runs], dtype=torch.int64)

    def boxes(self) -> Boxes:
        """Return tight boxes (N, 4), float32 XYXY in pixels, right and bottom exclusive; zeros if empty."""
        boxes = torch.tensor([self._box(runs) for runs in self.runs], dtype=torch.float32)
        return boxes.view(-1, 4).as_subclass(Boxes)

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
    """Named fields with one entry per instance of an image, used as Detectron2's class of that name.

    A field is set by assignment (`instances.track = ids`), read as an attribute, and indexed with the others
    (`instances[instances.scores > 0.5]`). Tensors, arrays, lists and `RunLengthMasks` can be fields.

    Predictions carry `pred_masks` (N, H, W) bool or `RunLengthMasks`, `pred_boxes` (N, 4) as `Boxes`,
    `scores` (N,) and `pred_classes` (N,) int64; targets carry `gt_classes` (N,) int64 and `gt_masks`
    (N, H, W) bool.
    """

    def __init__(self, image_size: tuple[int, int], **fields: Any) -> None:
        self._image_size = image_size
        self._fields: dict[str, Any] = {}
        for name, value in fields.items():
            self.set(name, value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Instances):
            return NotImplemented
        return equal([self._image_size, self._fields], [other._image_size, other._fields])

    @property
    def image_size(self) -> tuple[int, int]:
        """Return (H, W)."""
        return self._image_size

    def set(self, name: str, value: Any) -> None:
        """Add or replace a field.

        Raises:
            ValueError: its length is not that of the existing fields, or an attribute has that name.
        """
        if hasattr(type(self), name):
            raise ValueError(f"'{name}' cannot be a field: it is an attribute of every Instances")
        if not hasattr(value, "__len__") or getattr(value, "ndim", 1) == 0:
            raise ValueError(f"field '{name}' is {value!r:.80}; it must have one entry per instance")
        if self._fields and len(value) != len(self):
            raise ValueError(f"field '{name}' has {len(value)} entries, the other fields have {len(self)}")
        self._fields[name] = value

    def has(self, name: str) -> bool:
        """Return True if the field exists."""
        return name in self._fields

    def get(self, name: str) -> Any:
        """Return a field."""
        return getattr(self, name)

    def remove(self, name: str) -> None:
        """Remove a field."""
        delattr(self, name)

    def get_fields(self) -> dict[str, Any]:
        """Return all fields by name."""
        return self._fields

    def __getattr__(self, name: str) -> Any:
        fields = self.__dict__.get("_fields", {})
        if name not in fields:
            here = {"labels": "pred_classes", "bboxes": "pred_boxes"}.get(name, f"pred_{name}")
            advice = f"; type .{here}" if here in fields else ""
            raise AttributeError(f"no field '{name}' among {sorted(fields)}{advice}")
        return fields[name]

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:
            self.set(name, value)

    def __delattr__(self, name: str) -> None:
        getattr(self, name)  # an unknown field is an AttributeError that lists the fields
        del self._fields[name]

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._fields]

    def __len__(self) -> int:
        return len(next(iter(self._fields.values()), ()))

    def __getitem__(self, index: int | Indices) -> Instances:
        """Return the chosen instances; one for an integer."""
        if not isinstance(index, slice) and np.ndim(index) == 0:
            number, count = operator.index(index), len(self)  # type: ignore[arg-type]
            if not -count <= number < count:
                raise IndexError(f"there is no instance {number} among {count}")
            index = slice(number % count, number % count + 1)
        return Instances(self.image_size, **{name: _chosen(v, index) for name, v in self._fields.items()})

    def __iter__(self) -> Iterator[Instances]:
        return (self[slice(i, i + 1)] for i in range(len(self)))

    def to(self, device: torch.device | str) -> Instances:
        """Return the instances with tensors and masks on `device`."""
        moved = {k: v.to(device) if hasattr(v, "to") else v for k, v in self._fields.items()}
        return Instances(self.image_size, **moved)

    @staticmethod
    def cat(parts: Sequence[Instances]) -> Instances:
        """Return the instances of all parts, which have one image size and the same fields.

        Raises:
            ValueError: there are no parts, or they differ in size or fields.
        """
        kinds = {(part.image_size, tuple(sorted(part.get_fields()))) for part in parts}
        if len(kinds) != 1:
            raise ValueError(
                f"only Instances of one image size and the same fields can be joined, not {kinds}"
            )
        fields = parts[0].get_fields()
        joined = {name: _joined([part.get(name) for part in parts]) for name in fields}
        return Instances(parts[0].image_size, **joined)

    def __repr__(self) -> str:
        return f"Instances({len(self)} of {self.image_size}, fields: {sorted(self._fields)})"


def _chosen(value: Any, index: Any) -> Any:
    """Return the entries of a field; lists and tuples, which know only slices, become lists."""
    if isinstance(index, slice) or not isinstance(value, list | tuple):
        return value[index.cpu() if isinstance(index, Tensor) and isinstance(value, np.ndarray) else index]
    chosen = torch.arange(len(value))[index.cpu() if isinstance(index, Tensor) else index]
    return [value[i] for i in chosen.tolist()]


def _joined(values: list[Any]) -> Any:
    """Return one field of the entries of several."""
    if isinstance(values[0], Tensor):
        return torch.cat(values)
    if isinstance(values[0], RunLengthMasks):
        return RunLengthMasks(values[0].size, [runs for masks in values for runs in masks.runs])
    return (
        np.concatenate(values) if isinstance(values[0], np.ndarray) else [v for part in values for v in part]
    )
