"""Finding and reading a file of weights. Its format is told by its content, not by its name.

Read are files of `torch.save` (weights only), pickles of the Detectron2 model zoo (by an unpickler that
executes nothing) and safetensors, from a path, a web address, a `detectron2://` address, or another that a
handler of `mask2former.utils.storage` knows; iopath downloads and caches.
"""

import difflib
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import numpy as np
import torch
from iopath.common.file_io import get_cache_dir
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mask2former.utils.storage import is_remote, local_copy, web_cache, web_url
from mask2former.weights import model_zoo as zoo
from mask2former.weights.safe_pickle import PickleError, RefusedPickleError, load_plain_pickle

logger = logging.getLogger(__name__)

HEAD_BYTES = 1024
ZIP_START = b"PK\x03\x04"
OLD_TORCH_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number before torch 1.6
PICKLE_START = b"\x80"
PICKLE_END = b"."
STATE_DICT_KEYS = ("model", "state_dict")


class WeightsError(ValueError):
    """A file of weights that cannot be used; says which and why."""

    def __init__(self, file: str | Path, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.file = str(file)
        self.reason = reason


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: tensors under the file's own names, and what came with them.

    `config` is the YAML text and `metadata` the class names, thing ids and colors that this project's own
    checkpoints carry; `extra` is everything else (optimizer, iteration, ...).
    """

    file: str
    model: dict[str, Tensor]
    config: str | None = None
    metadata: dict[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def local_file(source: str | Path) -> Path:
    """Return the local file, downloaded if `source` is a URL that is not in the cache yet.

    Raises:
        WeightsError: the file does not exist or cannot be downloaded.
    """
    if not is_remote(source):
        return _existing(Path(source).expanduser())
    url = urlparse(web_url(str(source)))
    if ".." in url.path.split("/"):  # iopath would follow it out of its cache
        raise WeightsError(source, "a URL must not contain '..'")
    cached = Path(web_cache(url.geturl()), url.path.lstrip("/"))
    if url.geturl().startswith(zoo.root()) and not cached.is_file():
        logger.warning("%s", zoo.license_notice())
    try:
        return local_copy(source)
    except (OSError, ValueError) as error:
        advice = f"download it by other means, to {cached} or to a file that MODEL.WEIGHTS names"
        raise WeightsError(source, f"cannot be downloaded ({error}); {advice}") from error


def _existing(file: Path) -> Path:
    if file.is_file():
        return file
    if file.is_dir():
        raise WeightsError(file, "is a folder, not a file of weights")
    reason = "no such file"
    if near := difflib.get_close_matches(file.name, _names_in(file.parent), n=3):
        reason += f"; in {file.parent} there is {', '.join(near)}"
    if origin := zoo.backbone_origin(file.name):
        reason += (
            f"; it was converted from {origin}, which is read as it is: MODEL.WEIGHTS {origin} downloads it"
        )
    raise WeightsError(file, reason)


def _names_in(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()] if folder.is_dir() else []


def read_checkpoint(source: str | Path) -> Checkpoint:
    """Read a file of weights from a path or an address.

    Raises:
        WeightsError: there is no such file; it is empty, truncated, no checkpoint, holds no weights, or holds
            code or objects (nothing of which is executed). A bad download leaves the cache.
    """
    file = local_file(source)
    try:
        contents = _read(file)
        return _checkpoint(str(source), contents)
    except WeightsError as error:
        if is_remote(source) and file.is_relative_to(get_cache_dir()):
            file.unlink()
            raise WeightsError(source, f"{error.reason} (the download was deleted)") from error
        raise


def _read(file: Path) -> Any:
    with file.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
        stream.seek(-1 if head else 0, os.SEEK_END)
        last = stream.read()
    for form in FORMATS:
        if form.is_it(head):
            return form.read(file)
    for reason, is_it in NO_CHECKPOINTS:
        if is_it(head.lstrip()):
            raise WeightsError(file, reason)
    if last == PICKLE_END:  # the oldest pickles have no mark at the beginning, but all end with a full stop
        return _read_pickle(file)
    raise WeightsError(file, "is no checkpoint: neither a file of torch.save, nor a pickle, nor safetensors")


class Format(NamedTuple):
    """A file format: whether a file's first bytes are of it, and its reader."""

    is_it: Callable[[bytes], bool]
    read: Callable[[Path], Any]


NO_CHECKPOINTS: tuple[tuple[str, Callable[[bytes], bool]], ...] = (
    ("is empty", lambda head: not head),
    (
        "is a web page, not weights: the download got an answer in place of the file",
        lambda head: head[:200].lower().startswith((b"<!doctype", b"<html", b"<?xml")),
    ),
    (
        "is a Git LFS pointer, not weights: run `git lfs pull` where it came from",
        lambda head: head.startswith(b"version https://git-lfs"),
    ),
    (
        "is a compressed archive: unpack it, and give the file of weights inside",
        lambda head: head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"\x28\xb5\x2f\xfd")),
    ),
)


def _looks_like_safetensors(head: bytes) -> bool:
    """Eight bytes with the length of a JSON header, then the header."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32


def _read_torch(file: Path) -> Any:
    """A file of `torch.save`, as weights only; what nobody uses, as an optimizer's state, stays on disk."""
    # Old files cannot be mapped, and torch would believe the name of one that is called safetensors.
    mmap = zipfile.is_zipfile(file) and file.suffix != ".safetensors"
    try:
        with file.open("rb") as stream:
            source = str(file) if mmap else stream
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        if asked := re.search(r"GLOBAL (\S+)", str(error)):
            raise WeightsError(file, f"holds code or objects ({asked[1]}); {HOLDS_CODE}") from error
        raise WeightsError(file, f"is truncated or damaged ({_first_line(error)})") from error
    except Exception as error:  # torch reports damage by many kinds of error, according to where it is
        raise WeightsError(file, f"is truncated, damaged or no checkpoint ({_first_line(error)})") from error


HOLDS_CODE = (
    "nothing was executed. Only tensors, numbers, strings and containers are read: where you trust the file, "
    'load it yourself and save its state dict alone, as torch.save({"model": state_dict}, ...)'
)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _read_pickle(file: Path) -> Any:
    """A pickle of the Detectron2 model zoo, or converted for it."""
    try:
        with file.open("rb") as stream:
            return load_plain_pickle(stream)
    except RefusedPickleError as error:
        raise WeightsError(file, f"holds code or objects: {error}") from error
    except PickleError as error:
        raise WeightsError(file, f"is truncated, damaged or no checkpoint ({error})") from error


def _read_safetensors(file: Path) -> Any:
    try:
        with safe_open(str(file), framework="pt") as stream:
            names = stream.keys()
            tensors = {name: stream.get_tensor(name) for name in names}
            return {**(stream.metadata() or {}), "model": tensors}
    except (SafetensorError, ValueError, OSError) as error:
        raise WeightsError(file, f"is truncated or damaged ({_first_line(error)})") from error


FORMATS = (
    Format(lambda head: head.startswith((ZIP_START, OLD_TORCH_START)), _read_torch),
    Format(_looks_like_safetensors, _read_safetensors),
    Format(lambda head: head.startswith(PICKLE_START), _read_pickle),
)


def _tensor(value: Tensor | np.ndarray) -> Tensor:
    if isinstance(value, Tensor):
        return value
    return torch.from_numpy(np.asarray(value).astype(value.dtype.newbyteorder("="), order="C"))


def _checkpoint(source: str, contents: Any) -> Checkpoint:
    """Sort what a file holds into weights and the rest."""
    if not isinstance(contents, Mapping):
        raise WeightsError(source, f"holds no weights but a {type(contents).__name__}")
    rest = dict(contents)
    wrapper = next((key for key in STATE_DICT_KEYS if isinstance(rest.get(key), Mapping)), None)
    state = dict(rest.pop(wrapper)) if wrapper else rest
    tensors = {
        name: _tensor(value) for name, value in state.items() if isinstance(value, Tensor | np.ndarray)
    }
    if not tensors:
        keys = ", ".join(map(str, list(contents)[:10])) or "none"
        raise WeightsError(source, f"holds no weights; its keys are: {keys}")
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta:
            raise WeightsError(source, f"holds a tensor that is sparse or has no values: {name}")
    extra = {key: value for key, value in rest.items() if key not in tensors}
    config, metadata = extra.pop("config", None), extra.pop("metadata", None)
    return Checkpoint(
        file=source,
        model={str(name): tensor for name, tensor in tensors.items()},
        config=config if isinstance(config, str) else None,
        metadata=metadata if isinstance(metadata, dict) else None,
        extra=extra,
    )
