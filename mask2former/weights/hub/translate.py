"""Translation of tensors between transformers' files and ours, by the tables of `names.py`."""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mask2former.weights.hub.tables import Names

COMPUTED = re.compile(r"\.relative_position_index$")  # of Swin's windows
COUNTER = "num_batches_tracked"  # of batch norms; frozen ones have none, and nothing reads it

_TOKEN = re.compile(r"\{(\w)(?:\+(\d))?\}|<([\w|]+)>|(\*)")
PART, REST = "part", "rest"


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    def group(token: re.Match[str]) -> str:
        number, _, parts, _ = token.groups()
        if number:
            return rf"(?P<{number}>\d+)"
        return f"(?P<{PART}>{parts})" if parts else f"(?P<{REST}>.+)"

    literals = [re.escape(text) for text in _TOKEN.sub("\0", template).split("\0")]
    groups = [group(token) for token in _TOKEN.finditer(template)]
    return re.compile("".join(f"{a}{b}" for a, b in zip(literals, [*groups, ""], strict=True)))


def _values(template: str, name: str) -> dict[str, Any] | None:
    """Return what the placeholders of a template stand for in a name; None if it is not of this form."""
    match = _pattern(template).fullmatch(name)
    if match is None:
        return None
    values: dict[str, Any] = match.groupdict()
    for number, offset, parts, _ in _TOKEN.findall(template):
        if number:
            values[number] = int(values[number]) - int(offset or 0)
        elif parts:
            values[PART] = parts.split("|").index(values[PART])
    return values


def _filled(template: str, values: Mapping[str, Any]) -> str:
    def text(token: re.Match[str]) -> str:
        number, offset, parts, _ = token.groups()
        if number:
            return str(values[number] + int(offset or 0))
        return str(parts.split("|")[values[PART]] if parts else values[REST])

    return _TOKEN.sub(text, template)


def our_name(name: str, names: Names) -> tuple[str, int | None] | None:
    """Return our name for one of transformers', and which part of it that is, if it is one of several.

    A tensor without a counterpart has none.
    """
    for row in names.rows:
        values = _values(row.hub, name)
        if values is not None:
            return _filled(row.ours, values), values.get(PART)
    return None


def hub_names(name: str, names: Names) -> list[str]:
    """Return transformers' names for one of ours, in the order of the rows; none if it has no counterpart."""
    for row in names.rows:
        values = _values(row.ours, name)
        if values is not None:
            parts = re.findall(r"<([\w|]+)>", row.hub)
            count = len(parts[0].split("|")) if parts else 1
            return [_filled(row.hub, {**values, PART: part}) for part in range(count)]
    return []


def _starts(name: str, prefix: str) -> bool:
    """Return True if a name starts with a prefix that is not empty."""
    return prefix != "" and name.startswith(prefix)


def to_ours(tensors: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Return the tensors of a file of transformers' under our names, without those that nothing reads.

    Tensors without a counterpart keep their names, to be reported as unexpected when they are loaded.

    Raises:
        ValueError: a part of a tensor is missing, or its parts have different shapes.
    """
    renamed: dict[str, Tensor] = {}
    joined: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        new, part = our_name(name, names) or (name, None)
        if part is not None:
            joined.setdefault(new, {})[part] = tensor
        elif new != name or not (COMPUTED.search(name) or _starts(name, names.unused)):
            renamed[new] = tensor[None] if new == names.positions and tensor.ndim == 2 else tensor
    return renamed | {name: _joined(parts, hub_names(name, names)) for name, parts in joined.items()}


def _joined(parts: Mapping[int, Tensor], names: Sequence[str]) -> Tensor:
    """Return the parts of a tensor as one; `names` are theirs, for errors."""
    if missing := [name for i, name in enumerate(names) if i not in parts]:
        raise ValueError(f"{missing[0]} is missing")
    shapes = [tuple(parts[i].shape) for i in range(len(names))]
    for name, shape in zip(names, shapes, strict=True):
        if shape != shapes[0]:
            raise ValueError(f"{name} has shape {shape}, but {names[0]} {shapes[0]}")
    return torch.cat([parts[i] for i in range(len(names))])


def to_hub(tensors: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Return our tensors under transformers' names, in memory of their own, and what theirs have in excess.

    Raises:
        ValueError: a tensor has no counterpart.
    """
    theirs: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = hub_names(name, names)
        tensor = tensor[0] if name == names.positions else tensor
        if not new and not COMPUTED.search(name):
            raise ValueError(f"{name} has no counterpart in transformers")
        parts = tensor.chunk(len(new)) if len(new) > 1 else (tensor,) * len(new)
        theirs |= {one: part.clone() for one, part in zip(new, parts, strict=True)}
    return {**_excess(theirs, names), **theirs}


def _excess(theirs: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Return transformers' tensors that have no counterpart here, as they are in a new model."""
    excess: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "running_var":
            excess[f"{module}.{COUNTER}"] = torch.zeros((), dtype=torch.int64, device=tensor.device)
        elif _starts(name, names.last_norm):
            excess[names.unused + leaf] = torch.full_like(tensor, 1.0 if leaf == "weight" else 0.0)
    return excess
