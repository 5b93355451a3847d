"""Reading pickled weights without running what a pickle may ask for.

A pickle is a program: it names functions and calls them. Here every name is looked up in `MAKERS`, and what
is found there are makers of ours that build arrays, tensors, numbers and containers and do nothing else:
numpy's restoring code never sees the file's instructions, torch's only as weights. Any other name is refused
before it is imported. Python 2 pickles are read as well.
"""

import io
import math
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

NUMBER_KINDS = "biuf"


class PickleError(ValueError):
    """The file is no pickle that can be read to its end."""


class RefusedPickleError(PickleError):
    """The pickle asks for something other than arrays, numbers, strings and containers."""


class Maker(NamedTuple):
    """A callable that the instructions of a pickle cannot alter: it has no attributes that can be set."""

    make: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        """Build the value."""
        return self.make(*args)


class PickledDtype:
    """A numpy dtype as a pickle spells it: a code, then its state, of which the byte order matters."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = str(code)
        self.order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, order, *structure = state
        if order not in tuple("<>|=") or any(part is not None for part in structure[:3]):
            raise RefusedPickleError(f"it holds arrays of a structured type ('{self.code}')")
        self.order = order

    def resolve(self) -> np.dtype:
        """The numpy dtype, if it is one of plain numbers."""
        kind, size = self.code[:1], self.code[1:]
        if kind not in NUMBER_KINDS or size not in ("1", "2", "4", "8"):
            raise RefusedPickleError(f"it holds arrays of type '{self.code}'; only numbers are read")
        return np.dtype(self.order.replace("|", "=") + self.code)


class PickledArray:
    """A numpy array that waits for the bytes that come with its state."""

    def __init__(self, *_: Any) -> None:
        self.tensor: Tensor | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, dtype, is_fortran, data = state
        self.tensor = _tensor_from_bytes(data, dtype, shape, "F" if is_fortran else "C")


def _bytes(data: Any) -> bytes:
    """Raw bytes; Python 2's arrive as text, one character a byte."""
    return data.encode("latin1") if isinstance(data, str) else bytes(memoryview(data))


def _tensor_from_bytes(data: Any, dtype: PickledDtype, shape: Any, order: Any = "C") -> Tensor:
    resolved = dtype.resolve()
    values = np.frombuffer(_bytes(data), resolved).reshape(shape, order=order)
    return torch.from_numpy(values.astype(resolved.newbyteorder("="), order="C"))


def _filled_array(data: Any, dtype: PickledDtype, shape: Any, order: Any) -> PickledArray:
    array = PickledArray()
    array.tensor = _tensor_from_bytes(data, dtype, shape, order)
    return array


def _number(dtype: PickledDtype, data: Any) -> int | float | bool:
    return _tensor_from_bytes(data, dtype, ()).item()


def _bytes_without_bytes() -> bytes:
    """How Python 3 writes empty bytes for Python 2."""
    return b""


def _bytearray(data: Any = b"", _encoding: str = "latin1") -> bytearray:
    return bytearray(_bytes(data))


def _text_to_bytes(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes into a pickle that Python 2 could read."""
    if encoding != "latin1":
        raise RefusedPickleError(f"it encodes text as '{encoding}'")
    return text.encode("latin1")


def _storage(raw: bytes) -> Any:
    """A tensor's memory: a file of torch within the pickle, read as weights only."""
    return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """The view of a storage; it must lie within it."""
    if not isinstance(storage, torch.storage.TypedStorage):
        raise PickleError("a tensor's memory is no memory")
    memory = storage._untyped_storage  # its public accessor warns that it is old
    length = memory.nbytes() // storage.dtype.itemsize
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride)) < 0 or (math.prod(size) > 0 and last >= length):
        raise PickleError("a tensor reaches beyond its memory")
    return torch.empty(0, dtype=storage.dtype).set_(memory, offset, size, stride)


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


MAKERS: Mapping[str, Maker] = {
    "_codecs.encode": Maker(_text_to_bytes),
    **{f"{module}.set": Maker(set) for module in ("builtins", "__builtin__")},
    **{f"{module}.frozenset": Maker(frozenset) for module in ("builtins", "__builtin__")},
    **{f"{module}.bytes": Maker(_bytes_without_bytes) for module in ("builtins", "__builtin__")},
    **{f"{module}.bytearray": Maker(_bytearray) for module in ("builtins", "__builtin__")},
    "collections.OrderedDict": Maker(OrderedDict),
    "numpy.dtype": Maker(PickledDtype),
    "numpy.ndarray": Maker(PickledArray),
    **{f"numpy.{core}.multiarray._reconstruct": Maker(PickledArray) for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": Maker(_number) for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": Maker(_filled_array) for core in ("core", "_core")},
    "torch.Size": Maker(tuple),
    "torch._utils._rebuild_tensor_v2": Maker(_tensor),
    "torch._utils._rebuild_parameter": Maker(_parameter),
    "torch.storage._load_from_bytes": Maker(_storage),
}


class PlainUnpickler(pickle._Unpickler):
    """Python's unpickler with `MAKERS` as the only names in the world.

    It is the one written in Python: its memo is a dict, whereas a few bytes make the one in C take gigabytes.
    """

    def find_class(self, module: str, name: str) -> Maker:
        """The maker of that name."""
        maker = MAKERS.get(f"{module}.{name}")
        if maker is None:
            raise RefusedPickleError(
                f"it asks for {module}.{name}, and only arrays, numbers, strings and containers are read; "
                "nothing was executed"
            )
        return maker


def _resolved(value: Any, done: dict[int, Any]) -> Any:
    """The value with arrays as tensors, at every depth; `done` holds the parts that may appear again."""
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, PickledArray):
        if value.tensor is None:
            raise PickleError("an array has no values")
        resolved: Any = value.tensor
    elif isinstance(value, dict):
        resolved = {_resolved(key, done): _resolved(item, done) for key, item in value.items()}
    elif isinstance(value, Maker | PickledDtype):
        raise PickleError("it holds the type of a value in place of a value")
    elif isinstance(value, list | tuple | set | frozenset):
        resolved = type(value)(_resolved(item, done) for item in value)
    else:
        return value
    done[id(value)] = resolved
    return resolved


def load_plain_pickle(file: BinaryIO) -> Any:
    """What the pickle holds: numbers, strings, bytes, containers, and tensors for its arrays and tensors.

    Raises:
        RefusedPickleError: it asks for anything else; nothing is executed.
        PickleError: it is truncated, damaged, or no pickle.
    """
    try:
        return _resolved(PlainUnpickler(file, encoding="latin1").load(), {})
    except PickleError:
        raise
    except pickle.UnpicklingError as error:
        refused = "Weights only" in str(error)  # a tensor's memory, which torch itself refused
        kind = RefusedPickleError if refused else PickleError
        raise kind("a tensor in it asks for code" if refused else f"{error}") from error
    except Exception as error:  # a damaged pickle fails anywhere: its instructions are arbitrary
        raise PickleError(f"{type(error).__name__}: {error}") from error
