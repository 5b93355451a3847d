"""Reader of pickles from other people: arrays, tensors, numbers, strings and containers, and no code.

A pickle is a program that names functions and calls them. Here a name is looked up in `ALLOWED`, which holds
constructors of plain values, and is never imported. Every other name is an error. Pickles of Python 2 are
read as well.

Files of `torch.save` are read by torch, whose own reader runs no code either, but which a small file can keep
busy for ever or fill memory with. `load_torch` therefore reads their pickles here first, without the tensors.
"""

import io
import pickle
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from mmap import mmap
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from mask2former.utils.messages import InputError


class PickleError(InputError):
    """A pickle that is truncated or damaged, or a file that is not a pickle."""


class RefusedPickleError(PickleError):
    """A pickle that names something other than arrays, numbers, strings and containers."""


MAX_KEY_PARTS = 100
MAX_NAME = 100  # characters of a name in a message
ZIP_START = b"PK\x03\x04"
MAX_EXPANSION = 10_000_000  # bytes that an archive may hold beyond its own size
MAX_REUSE = 10  # times that a byte of a pickle may be given to a function
LEGACY_PICKLES = 5  # magic number, protocol, system, value and keys of the tensors that follow
SIZED = (str, bytes, bytearray, list, tuple, dict, set, frozenset)
LATIN1 = ("latin1", "latin-1")


def _check_key(key: Any, containers: Any = (tuple, frozenset)) -> None:
    """Refuse a key or item of a set with too many nested parts: hashing it may never end."""
    pending, count = [key], 0
    while pending:
        part = pending.pop()
        if isinstance(part, containers):
            count += len(part)
            pending.extend(part.values() if isinstance(part, dict) else part)
        if count > MAX_KEY_PARTS:
            raise PickleError("it has a key of too many nested parts")


def _set(kind: type, items: Any = ()) -> Any:
    for item in items:
        _check_key(item)
    return kind(items)


def _ordered_dict(pairs: Any = ()) -> OrderedDict[Any, Any]:
    for key, _ in pairs:
        _check_key(key)
    return OrderedDict(pairs)


def _latin1(text: str, encoding: str) -> bytes:
    if encoding not in LATIN1:  # others can take time that grows with the square of the length
        raise PickleError("it has bytes in an encoding other than Latin-1")
    return text.encode("latin1")


def _bytes(kind: type, data: Any = b"", encoding: str = "latin1") -> Any:
    if isinstance(data, int):  # a few bytes of a pickle would allocate as much as they say
        raise RefusedPickleError(f"it asks for {kind.__name__} of {data} zeros")
    return kind(_latin1(data, encoding) if isinstance(data, str) else data)


class _Dtype:
    """A numpy dtype, which a pickle gives as a code such as "f4" and then a state with the byte order."""

    def __init__(self, code: Any, *_: Any) -> None:
        _check_key(code)
        self.dtype = np.dtype(str(code))
        if self.dtype.kind not in "biuf" or self.dtype.itemsize > 8:
            raise RefusedPickleError(f"it holds arrays of type '{code}'; only numbers are read")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])  # numpy would also take sizes and offsets from it


class _Array(np.ndarray):
    """A numpy array that takes its dtype from a `_Dtype`."""

    def __setstate__(self, state: Any) -> None:
        version, shape, dtype, is_fortran, data = state
        super().__setstate__((version, shape, dtype.dtype, is_fortran, data))


def _from_buffer(data: Any, dtype: _Dtype, shape: Any = (), order: Any = "C") -> np.ndarray:
    raw = data.encode("latin1") if isinstance(data, str) else data  # the `str` of Python 2
    return np.frombuffer(raw, dtype.dtype).reshape(shape, order=order)


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    memory = torch.empty(0, dtype=storage.dtype).set_(storage)
    return memory.as_strided(size, stride, offset)  # checks the bounds


CONTAINERS = {
    "set": partial(_set, set),
    "frozenset": partial(_set, frozenset),
    "bytes": partial(_bytes, bytes),
    "bytearray": partial(_bytes, bytearray),
}
CORES = ("numpy.core", "numpy._core")
ALLOWED: Mapping[str, Any] = {
    **{f"{module}.{name}": CONTAINERS[name] for module in ("builtins", "__builtin__") for name in CONTAINERS},
    "_codecs.encode": _latin1,  # how Python 3 writes bytes for Python 2
    "collections.OrderedDict": _ordered_dict,
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _Array,
    **{f"{core}.multiarray._reconstruct": lambda *_: _Array(0) for core in CORES},  # its state follows
    **{f"{core}.multiarray.scalar": lambda dtype, data: _from_buffer(data, dtype).item() for core in CORES},
    **{f"{core}.numeric._frombuffer": _from_buffer for core in CORES},
    "torch.Size": torch.Size,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    # The memory of a tensor is a file of `torch.save` inside the pickle
    "torch.storage._load_from_bytes": lambda raw: load_torch(io.BytesIO(raw)),
}


class _StandIn:
    """A value of torch that is not made."""

    def __init__(self, *arguments: Any) -> None:
        _check_key(arguments, (tuple, frozenset, list, dict))  # torch reads nested lists as numbers

    def __setstate__(self, state: Any) -> None:
        pass


REBUILT = ("tensor", "tensor_v2", "tensor_v3", "sparse_tensor", "meta_tensor_no_storage")
IN_TORCH_FILES: Mapping[str, Any] = {
    **{name: value for name, value in ALLOWED.items() if not name.startswith(("numpy", "torch"))},
    **{f"torch._utils._rebuild_{name}": _StandIn for name in REBUILT},
    "torch._utils._rebuild_parameter": _StandIn,
    "torch._utils._rebuild_parameter_with_state": _StandIn,
    "torch.serialization._get_layout": _StandIn,
    "torch.device": _StandIn,
    "torch.Size": _StandIn,
    "builtins.complex": _StandIn,
    "__builtin__.complex": _StandIn,
    "collections.Counter": partial(_set, Counter),
    **{
        f"torch.{name}": _StandIn
        for name, value in vars(torch).items()
        if isinstance(value, torch.dtype) or name.endswith("Storage")
    },
    "torch.storage.UntypedStorage": _StandIn,
    "torch.storage.TypedStorage": _StandIn,
}


class _Unpickler(pickle._Unpickler):  # in Python: a few bytes make the memo of the one in C take gigabytes
    def __init__(self, file: BinaryIO | mmap, allowed: Mapping[str, Any]) -> None:
        super().__init__(file, encoding="latin1")
        self.allowed = allowed
        self.position = file.tell
        self.start = file.tell()
        self.given = 0

    def persistent_load(self, pid: Any) -> Any:
        _check_key(pid)
        return _StandIn()

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in self.allowed:
            raise RefusedPickleError(
                f"it asks for {module[:MAX_NAME]}.{name[:MAX_NAME]}, and only arrays, numbers, strings and "
                "containers are read; nothing was executed"
            )
        return self.allowed[f"{module}.{name}"]


def _checked(code: bytes, keys: slice) -> Callable[[Any], None]:
    """Return an instruction of pickles that checks the keys on the stack before they are hashed."""
    instruction = pickle._Unpickler.dispatch[code[0]]

    def load(unpickler: Any) -> None:
        for key in unpickler.stack[keys]:
            _check_key(key)
        instruction(unpickler)

    return load


def _call(unpickler: Any) -> None:
    """Run REDUCE, unless the arguments of all calls together are much longer than what was read."""
    arguments = unpickler.stack[-1]
    unpickler.given += sum(len(argument) for argument in arguments if isinstance(argument, SIZED))
    if unpickler.given > MAX_REUSE * (unpickler.position() - unpickler.start):
        raise PickleError("it uses the same long value again and again")
    pickle._Unpickler.dispatch[pickle.REDUCE[0]](unpickler)


_Unpickler.dispatch = pickle._Unpickler.dispatch | {
    pickle.REDUCE[0]: _call,
    pickle.SETITEM[0]: _checked(pickle.SETITEM, slice(-2, -1)),
    pickle.SETITEMS[0]: _checked(pickle.SETITEMS, slice(0, None, 2)),
    pickle.DICT[0]: _checked(pickle.DICT, slice(0, None, 2)),
    pickle.ADDITEMS[0]: _checked(pickle.ADDITEMS, slice(None)),
    pickle.FROZENSET[0]: _checked(pickle.FROZENSET, slice(None)),
}


def _load(file: BinaryIO | mmap, allowed: Mapping[str, Any]) -> Any:
    try:
        return _Unpickler(file, allowed).load()
    except PickleError:
        raise
    except MemoryError as error:
        raise PickleError("it asks for more memory than there is") from error
    except Exception as error:  # a damaged pickle can fail in any of its instructions
        name = "" if isinstance(error, pickle.UnpicklingError) else f"{type(error).__name__}: "
        raise PickleError(f"{name}{error}") from error


def load_plain_pickle(file: BinaryIO | mmap, extra: Mapping[str, Any] | None = None) -> Any:
    """Return the value that a pickle holds; arrays are numpy arrays.

    `extra` has further allowed names, as `{"torch.float32": torch.float32}`.

    Raises:
        RefusedPickleError: it names anything else; nothing is executed.
        PickleError: it is truncated, damaged, or not a pickle.
    """
    return _load(file, {**ALLOWED, **(extra or {})})


def load_torch(file: BinaryIO, mapped: str | None = None) -> Any:
    """Return what a file of `torch.save` holds, with tensors on the CPU.

    `mapped` is the path of the file where unused tensors may stay on disk.

    Raises:
        RefusedPickleError: a pickle in it names anything but tensors and plain values; nothing is executed.
        PickleError: a pickle in it is damaged, or would take too much time or memory to read.
        Exception: torch reports damage by many kinds of errors.
    """
    if starts_as_zip(file):
        _check_archive(file)
    else:
        for _ in range(LEGACY_PICKLES):
            _load(file, IN_TORCH_FILES)
    file.seek(0)
    return torch.load(mapped or file, map_location="cpu", weights_only=True, mmap=mapped is not None)


def reason_of(error: Exception) -> str:
    """Return in one line why `load_torch` failed, without torch's advice to load the file unsafely."""
    if "weights_only" in str(error) or "Weights only" in str(error):
        return "TorchScript" if "TorchScript" in str(error) else "its pickle is not that of a state dict"
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def starts_as_zip(file: BinaryIO) -> bool:
    """Return True if torch reads the file as a zip archive, whatever else it may be."""
    start = file.read(len(ZIP_START))
    file.seek(0)
    return start == ZIP_START


def _check_archive(file: BinaryIO) -> None:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        size, expanded = file.seek(0, io.SEEK_END), sum(member.file_size for member in members)
        if expanded > size + MAX_EXPANSION:
            sizes = f"from {expanded / 1e6:.0f} to {size / 1e6:.1f} MB"
            raise PickleError(f"it is compressed, {sizes}, which torch.save never does")
        if any(member.filename.endswith("/constants.pkl") for member in members):
            raise RefusedPickleError("it is a TorchScript program")
        for member in members:
            if member.filename.lower().endswith("data.pkl"):  # torch does not look at the case
                _load(io.BytesIO(archive.read(member)), IN_TORCH_FILES)
