"""Contents of a file of weights: its format told by its content, and what it holds sorted.

The formats are those of `torch.save` (read as weights only), pickles of the Detectron2 model zoo (read by
`safe_pickle.py`, which executes nothing) and safetensors.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mask2former.utils.messages import Block, InputError, shortened
from mask2former.weights.safe_pickle import (
    ZIP_START,
    PickleError,
    RefusedPickleError,
    load_plain_pickle,
    load_torch,
    reason_of,
    starts_as_zip,
)

HEAD_BYTES = 1024
EXPORTED = (".onnx", ".xml", ".pt2")  # suffixes of files that `mask2former export` writes
OLD_TORCH_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number before torch 1.6
MAX_SHARING = 10  # times that a file's bytes may be used by its tensors
MAX_UNSTORED = 10_000_000  # bytes of its tensors beyond that
PICKLE_START = b"\x80"
PICKLE_END = b"."
OTHER_FILES = {
    rb"\Z": "is empty",
    rb"(?i)<!doctype|<html|<\?xml": "is a web page, not weights: the server sent it in place of the file",
    rb"version https://git-lfs": "is a Git LFS pointer, not weights: run `git lfs pull` where it came from",
    rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|\x28\xb5\x2f\xfd": (
        "is a compressed archive: unpack it, and give the file of weights inside"
    ),
}  # pattern of the first bytes without white space -> error
STATE_DICT_KEYS = ("model", "state_dict")
HOLDS_CODE = (
    "if you trust the file, load it yourself and save "
    'its state dict alone, as torch.save({"model": state_dict}, ...)'
)


class WeightsError(InputError):
    """A file of weights that cannot be used; the message has the file and the reason."""

    def __init__(self, file: str | Path, reason: str) -> None:
        message = f"{file}: {reason}"
        super().__init__(Block(message) if isinstance(reason, Block) else message)
        self.file = str(file)
        self.reason = reason


@dataclass(frozen=True)
class Checkpoint:
    """Contents of a file of weights: tensors under the file's names, and everything else.

    `config` is the YAML text and `metadata` the class names, thing ids and colors that checkpoints of this
    project hold; `extra` is the rest (optimizer, iteration, ...).
    """

    file: str
    model: dict[str, Tensor]
    config: str | None = None
    metadata: dict[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def read_file(file: Path, source: str) -> Checkpoint:
    """Read a local file of weights; `source` is the name that the checkpoint gets.

    Raises:
        WeightsError: the file is empty, truncated or not a checkpoint, holds no weights, or holds code or
            objects (nothing of which is executed).
    """
    if is_exported(source):
        advice = "give the checkpoint that it was exported from"
        raise WeightsError(
            source, f"is an exported file, which predicts, but holds no weights to load; {advice}"
        )
    checkpoint = _checkpoint(source, _read(file))
    _check_size(checkpoint, file.stat().st_size)
    return checkpoint


def is_exported(source: str | Path) -> bool:
    """Return True for the path or URL of a file for another runtime, by its suffix."""
    return Path(source).suffix.lower() in EXPORTED


def _check_size(checkpoint: Checkpoint, file_bytes: int) -> None:
    """Refuse tensors that hold much more than their file, as a number repeated without end."""
    needed = sum(tensor.nbytes for tensor in checkpoint.model.values())
    if needed > MAX_SHARING * file_bytes + MAX_UNSTORED:
        sizes = f"{needed / 1e6:.0f} MB in a file of {file_bytes / 1e6:.1f} MB"
        raise WeightsError(checkpoint.file, f"holds tensors that repeat their values, {sizes}")


def _read(file: Path) -> Any:
    with file.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
        stream.seek(-len(head[:1]), 2)
        last = stream.read()
    if head.startswith((ZIP_START, OLD_TORCH_START)):
        return _read_torch(file)
    if (
        head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32
    ):  # the length of a JSON header, then it
        return _read_safetensors(file)
    if head.startswith(PICKLE_START):
        return _read_pickle(file)
    for pattern, reason in OTHER_FILES.items():
        if re.match(pattern, head.lstrip()):
            raise WeightsError(file, reason)
    if last == PICKLE_END:  # the oldest pickles have no mark at the beginning, but all end with a full stop
        return _read_pickle(file)
    raise WeightsError(file, "is no checkpoint: neither a file of torch.save, nor a pickle, nor safetensors")


def _read_torch(file: Path) -> Any:
    """Read a file of `torch.save` as weights only; unused tensors, as an optimizer's, stay on disk."""
    try:
        with file.open("rb") as stream:
            # Files from before torch 1.6 cannot be mapped, and torch takes a .safetensors name for the format
            is_mapped = starts_as_zip(stream) and file.suffix != ".safetensors"
            return load_torch(stream, mapped=str(file) if is_mapped else None)
    except RefusedPickleError as error:
        raise WeightsError(file, f"holds code or objects: {error}; {HOLDS_CODE}") from error
    except Exception as error:  # torch reports damage by many kinds of errors
        raise WeightsError(file, f"is truncated, damaged or no checkpoint ({reason_of(error)})") from error


def _read_pickle(file: Path) -> Any:
    try:
        # Reading a mapped file, a damaged pickle gets no memory for more bytes than there are
        with file.open("rb") as stream, mmap(stream.fileno(), 0, access=ACCESS_READ) as mapped:
            return load_plain_pickle(mapped)
    except RefusedPickleError as error:
        raise WeightsError(file, f"holds code or objects: {error}") from error
    except PickleError as error:
        reason = shortened(str(error), 200)
        raise WeightsError(file, f"is truncated, damaged or no checkpoint ({reason})") from error


def _read_safetensors(file: Path) -> Any:
    try:
        with safe_open(str(file), framework="pt") as stream:
            names = stream.keys()
            tensors = {name: stream.get_tensor(name) for name in names}
            return {**(stream.metadata() or {}), "model": tensors}
    except (SafetensorError, ValueError, OSError) as error:
        raise WeightsError(file, f"is truncated or damaged ({reason_of(error)})") from error


def _checkpoint(source: str, contents: Any) -> Checkpoint:
    """Sort the contents of a file into weights and the rest."""
    if not isinstance(contents, Mapping):
        raise WeightsError(source, f"holds no weights, only a {type(contents).__name__}")
    rest = dict(contents)
    wrapper = next((key for key in STATE_DICT_KEYS if isinstance(rest.get(key), Mapping)), None)
    state = dict(rest.pop(wrapper)) if wrapper else rest
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(np.asarray(value).astype(value.dtype.newbyteorder("="), order="C"))
        if isinstance(value, Tensor):
            if value.layout != torch.strided or value.is_meta:
                raise WeightsError(source, f"holds a tensor that is sparse or has no values: {name}")
            tensors[str(name)] = value
    if not tensors:
        keys = ", ".join(map(str, list(contents)[:10])) or "none"
        raise WeightsError(source, f"holds no weights; its keys are: {keys}")
    extra = {key: value for key, value in rest.items() if str(key) not in tensors}
    config, metadata = extra.pop("config", None), extra.pop("metadata", None)
    return Checkpoint(
        file=source,
        model=tensors,
        config=config if isinstance(config, str) else None,
        metadata=metadata if isinstance(metadata, dict) else None,
        extra=extra,
    )
