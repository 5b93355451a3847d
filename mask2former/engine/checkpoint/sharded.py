"""A checkpoint that no process writes or reads as a whole: torch.distributed.checkpoint and a file beside.

A folder holds `*.distcp`, what each process wrote of the tensors; `.metadata`, which says where each tensor's
pieces lie; and `run.pth`, all that is no tensor. Any number of processes reads it, each what it needs. As in
all checkpoints, reading runs no code: `.metadata` is a pickle, and is read only if it names nothing but
dtypes and torch's classes of descriptions.

Shapes: `P` is the number of a parameter in the optimizer's groups, in order.
"""

import importlib
import os
import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from mask2former.utils.comm import is_distributed, is_main_process

# Of every process that is alone
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

RUN = "run.pth"
METADATA = ".metadata"
PARTS = "parts"  # key of a content whose tensors have not been read: the folder they are in
WEIGHT = "model/"
STATE = "optimizer/"  # and P/NAME

DESCRIPTIONS = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
HARMLESS = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("pathlib._local", "PosixPath"),  # as Python 3.13 calls them
    ("pathlib._local", "WindowsPath"),
}


class _DescriptionReader(pickle.Unpickler):
    """Refuses every name but those of dtypes and of classes that describe a checkpoint."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in HARMLESS:
            return super().find_class(module, name)
        found = (
            vars(importlib.import_module(module)).get(name) if module in (*DESCRIPTIONS, "torch") else None
        )
        described = isinstance(found, type) and found.__module__ in DESCRIPTIONS
        if described or isinstance(found, torch.dtype):
            return found
        raise pickle.UnpicklingError(f"{METADATA} names {module}.{name}")


def write_parts(folder: Path, content: dict[str, Any]) -> None:
    """Write a run's content, each process the tensors' parts that it holds; every process must call it.

    What all hold alike, and batch norms' statistics, which differ, is the main process's.

    Raises:
        OSError: a process could not write.
    """
    tensors = {WEIGHT + name: tensor for name, tensor in content["model"].items()}
    for number, state in content["optimizer"]["state"].items():
        tensors |= {f"{STATE}{number}/{name}": tensor for name, tensor in state.items()}
    if is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
        groups = content["optimizer"]["param_groups"]
        plain = {name: value for name, value in content.items() if name != "model"}
        with open(folder / RUN, "wb") as file:
            torch.save({**plain, "optimizer": {"param_groups": groups}}, file)
            file.flush()
            os.fsync(file.fileno())
    planner = dcp.DefaultSavePlanner(dedup_save_to_lowest_rank=True)
    try:
        dcp.save(
            tensors, storage_writer=FileSystemWriter(folder), planner=planner, no_dist=not is_distributed()
        )
    except CheckpointException as error:
        raise OSError(_causes(error)) from error


def read_run(folder: Path) -> dict[str, Any]:
    """All that is no tensor, and under `PARTS` where the tensors are, which must be complete.

    Raises:
        ValueError, OSError, RuntimeError, pickle.UnpicklingError: the folder is damaged.
    """
    content: dict[str, Any] = torch.load(folder / RUN, weights_only=True)
    ends: dict[str, int] = {}
    for place in (_describe(folder).storage_data or {}).values():
        ends[place.relative_path] = max(ends.get(place.relative_path, 0), place.offset + place.length)
    for name, end in ends.items():
        if (folder / name).stat().st_size < end:
            raise ValueError(f"{name} is cut off")
    return {**content, "model": {}, PARTS: str(folder)}


def with_tensors(
    content: dict[str, Any], model: Mapping[str, Tensor], parameters: Sequence[Tensor] | None = None
) -> dict[str, Any]:
    """`content` with the tensors that `read_run` left where they are; one that has its tensors as it is.

    Args:
        content: of any checkpoint.
        model: tensors by name; where one is in parts, this process reads its part.
        parameters: those that the optimizer has, by P, likewise; None leaves out the optimizer's state.

    Raises:
        ValueError: a process could not read.
    """
    if PARTS not in content:
        return content
    folder = Path(content[PARTS])
    places = {}
    for name, described in _describe(folder).state_dict_metadata.items():
        assert isinstance(described, TensorStorageMetadata)
        if name.startswith(WEIGHT) or parameters is not None:
            places[name] = _place(described, _like(name, model, parameters or ()))
    try:
        dcp.load(places, storage_reader=FileSystemReader(folder), no_dist=not is_distributed())
    except CheckpointException as error:
        raise ValueError(f"{folder}: {_causes(error)}") from error
    weights = {name.removeprefix(WEIGHT): t for name, t in places.items() if name.startswith(WEIGHT)}
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in places.items():
        if name.startswith(STATE):
            _, number, kind = name.split("/")
            states.setdefault(int(number), {})[kind] = tensor
    optimizer = {**content["optimizer"], "state": states}
    return {**content, "model": weights, "optimizer": optimizer}


def _causes(error: CheckpointException) -> str:
    """What went wrong in which processes, in one line."""
    return "; ".join(f"process {number}: {cause}" for number, (cause, _) in error.failures.items())


def _describe(folder: Path) -> Metadata:
    with open(folder / METADATA, "rb") as file:
        metadata = _DescriptionReader(file).load()
    if not isinstance(metadata, Metadata):
        raise pickle.UnpicklingError(f"{METADATA} is no description of a checkpoint")
    return metadata


def _like(name: str, model: Mapping[str, Tensor], parameters: Sequence[Tensor]) -> Tensor | None:
    """The weight that a tensor of the checkpoint is, or is the optimizer's state of."""
    if name.startswith(WEIGHT):
        return model.get(name.removeprefix(WEIGHT))
    number = int(name.split("/")[1])
    return parameters[number] if number < len(parameters) else None


def _place(described: TensorStorageMetadata, like: Tensor | None) -> Tensor:
    """Where to read a tensor to: in parts as `like` if it has its shape, else whole."""
    if like is not None and like.shape == described.size:
        return torch.zeros_like(like.detach(), dtype=described.properties.dtype)
    return torch.zeros(described.size, dtype=described.properties.dtype)
