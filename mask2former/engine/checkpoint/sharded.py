"""Sharded checkpoints: folders that all processes write and read together (torch.distributed.checkpoint).

The folder holds `*.distcp`, the shards that each process wrote; `.metadata`, the index of the shards; and
`run.pth`, everything that is not a tensor. Any number of processes can read it. Reading runs no code:
`.metadata` is a pickle, and only the classes of the index are allowed in it.

Shapes: `P` is the number of a parameter in the optimizer's groups, in order.
"""

import os
import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter, filesystem, metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.serialization import _get_layout

from mask2former.utils.comm import is_distributed, is_main_process
from mask2former.utils.sharding import shard_like
from mask2former.weights.safe_pickle import load_plain_pickle, load_torch

# Logged whenever there is a single process
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

RUN = "run.pth"
METADATA = ".metadata"
PATH = "path"  # key of a checkpoint that was read: its file, or the folder where its tensors still are
# Tensors are called model/NAME, unaveraged/NAME and optimizer/P/NAME. With SOLVER.EMA_DECAY, "model" is the
# averaged model, and UNAVERAGED has the trained values of its parameters.
WEIGHTS, UNAVERAGED, STATES = "model", "unaveraged", "optimizer"

_CLASSES = (c for c in vars(metadata).values() if isinstance(c, type) and c.__module__ == metadata.__name__)
INDEX_NAMES: dict[str, Any] = {
    **{f"{kind.__module__}.{kind.__name__}": kind for kind in (*_CLASSES, filesystem._StorageInfo)},
    **{str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)},
    "torch.serialization._get_layout": _get_layout,
    # Python 3.13 has the paths in _local
    **{f"pathlib.{kind}Path": PurePath for kind in ("Posix", "Windows", "_local.Posix", "_local.Windows")},
}


def write_sharded(folder: Path, checkpoint: dict[str, Any]) -> None:
    """Write the shards of this process; every process must call it. OSError: a process could not write.

    Tensors that are not sharded are rank 0's, also batch-norm statistics, which differ between processes.
    """
    if is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / RUN, "wb") as file:
            torch.save(_with_tensors(checkpoint, {}), file)
            file.flush()
            os.fsync(file.fileno())
    planner = dcp.DefaultSavePlanner(dedup_save_to_lowest_rank=True)
    writer, alone = FileSystemWriter(folder), not is_distributed()
    try:
        dcp.save(_tensors(checkpoint), storage_writer=writer, planner=planner, no_dist=alone)
    except CheckpointException as error:
        raise OSError(_causes(error)) from error


def read_sharded(folder: Path) -> dict[str, Any]:
    """Return a checkpoint without its tensors, after a check that their files are complete.

    Raises:
        Exception: the folder is damaged, which torch reports by many kinds of errors.
    """
    with open(folder / RUN, "rb") as file:
        checkpoint: dict[str, Any] = load_torch(file)
    ends: dict[str, int] = {}
    for place in (_read_index(folder).storage_data or {}).values():
        ends[place.relative_path] = max(ends.get(place.relative_path, 0), place.offset + place.length)
    for name, end in ends.items():
        if (folder / name).stat().st_size < end:
            raise ValueError(f"{name} is truncated")
    return {**checkpoint, "model": {}}


def load_tensors(
    checkpoint: dict[str, Any], model: Mapping[str, Tensor], parameters: Sequence[Tensor] | None = None
) -> dict[str, Any]:
    """Return a checkpoint that `RunFolder.load_last` returned, with this process's shards of its tensors.

    They are sharded as the state dict `model` and the optimizer's `parameters`, by P, are; without
    `parameters` the optimizer's state is left out.

    Raises:
        ValueError: a process could not read.
    """

    def like(name: str) -> Tensor | None:
        kind, key = name.split("/", 1)
        if kind != STATES:
            return model.get(key)
        number = int(key.split("/")[0])
        return parameters[number] if parameters and number < len(parameters) else None

    folder, tensors = Path(checkpoint[PATH]), dict[str, Tensor]()
    if not folder.is_dir():
        return _with_tensors(checkpoint, {n: shard_like(t, like(n)) for n, t in _tensors(checkpoint).items()})
    for name, entry in _read_index(folder).state_dict_metadata.items():
        if parameters is not None or name.startswith(WEIGHTS):
            assert isinstance(entry, TensorStorageMetadata)
            target = like(name)
            if target is None or target.shape != entry.size:
                target = torch.empty(entry.size)
            tensors[name] = torch.zeros_like(target, dtype=entry.properties.dtype)
    try:
        dcp.load(tensors, storage_reader=FileSystemReader(folder), no_dist=not is_distributed())
    except CheckpointException as error:
        raise ValueError(f"{folder}: {_causes(error)}") from error
    return _with_tensors(checkpoint, tensors)


def _tensors(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by their names in the index."""
    kinds = (WEIGHTS, UNAVERAGED)
    weights = {f"{kind}/{name}": t for kind in kinds for name, t in checkpoint.get(kind, {}).items()}
    return weights | optimizer_tensors(checkpoint)


def optimizer_tensors(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of the optimizer's state by their names in the index."""
    states = checkpoint["optimizer"]["state"].items()
    return {f"{STATES}/{number}/{name}": t for number, state in states for name, t in state.items()}


def _with_tensors(checkpoint: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return `checkpoint` with the tensors that `_tensors` named."""
    weights: dict[str, dict[str, Tensor]] = {k: {} for k in (WEIGHTS, UNAVERAGED) if k in checkpoint}
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, key = name.split("/", 1)
        if kind == STATES:
            number, key = key.split("/")
            state.setdefault(int(number), {})[key] = tensor
        else:
            weights[kind][key] = tensor
    return {**checkpoint, **weights, "optimizer": {**checkpoint["optimizer"], "state": state}}


def _causes(error: CheckpointException) -> str:
    """Return what went wrong in which process, on one line."""
    return "; ".join(f"process {number}: {cause}" for number, (cause, _) in error.failures.items())


def _read_index(folder: Path) -> Metadata:
    with open(folder / METADATA, "rb") as file:
        index = load_plain_pickle(file, INDEX_NAMES)
    if not isinstance(index, Metadata):
        raise pickle.UnpicklingError(f"{METADATA} is not the index of a checkpoint")
    return index
