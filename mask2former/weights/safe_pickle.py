"""Reader of pickles from other people: arrays, tensors, numbers, strings and containers, and no code.

A pickle is a program that names functions and calls them. Here a name is looked up in `ALLOWED`, which holds
constructors of plain values, and is never imported. Every other name is an error. Pickles of Python 2 are
read as well.
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from mmap import mmap
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor


class PickleError(ValueError):
    """A pickle that is truncated or damaged, or a file that is not a pickle."""


class RefusedPickleError(PickleError):
    """A pickle that names something other than arrays, numbers, strings and containers."""


MAX_KEY_PARTS = 1_000
MAX_NAME = 100  # characters of a name in a message


def _check_key(key: Any) -> None:
    """Refuse a key or item of a set with too many nested parts: hashing it may never end."""
    pending, count = [key], 0
    while pending:
        part = pending.pop()
        if isinstance(part, (tuple, frozenset)):
            count += len(part)
            pending.extend(part)
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


def _of_bytes(kind: type, content: Any = b"") -> Any:
    if isinstance(content, int):  # a few bytes of a pickle would allocate as much as they say
        raise RefusedPickleError(f"it asks for {kind.__name__} of {content} zeros")
    return kind(content)


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
    "bytes": partial(_of_bytes, bytes),
    "bytearray": partial(_of_bytes, bytearray),
}
CORES = ("numpy.core", "numpy._core")
ALLOWED: Mapping[str, Any] = {
    **{f"{module}.{name}": CONTAINERS[name] for module in ("builtins", "__builtin__") for name in CONTAINERS},
    "_codecs.encode": lambda text, _: text.encode("latin1"),  # how Python 3 writes bytes for Python 2
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
    "torch.storage._load_from_bytes": lambda raw: torch.load(io.BytesIO(raw), "cpu", weights_only=True),
}


class _Unpickler(pickle._Unpickler):  # in Python: a few bytes make the memo of the one in C take gigabytes
    def __init__(self, file: BinaryIO | mmap, allowed: Mapping[str, Any]) -> None:
        super().__init__(file, encoding="latin1")
        self.allowed = allowed

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


_Unpickler.dispatch = pickle._Unpickler.dispatch | {
    code[0]: _checked(code, keys)
    for code, keys in {
        pickle.SETITEM: slice(-2, -1),
        pickle.SETITEMS: slice(0, None, 2),
        pickle.DICT: slice(0, None, 2),
        pickle.ADDITEMS: slice(None),
        pickle.FROZENSET: slice(None),
    }.items()
}


def load_plain_pickle(file: BinaryIO | mmap, extra: Mapping[str, Any] | None = None) -> Any:
    """Return the value that a pickle holds; arrays are numpy arrays.

    `extra` has further allowed names, as `{"torch.float32": torch.float32}`.

    Raises:
        RefusedPickleError: it names anything else; nothing is executed.
        PickleError: it is truncated, damaged, or not a pickle.
    """
    try:
        return _Unpickler(file, {**ALLOWED, **(extra or {})}).load()
    except PickleError:
        raise
    except pickle.UnpicklingError as error:
        if "Weights only" in str(error):  # torch refused the memory of a tensor
            raise RefusedPickleError("a tensor in it asks for code") from error
        raise PickleError(str(error)) from error
    except MemoryError as error:
        raise PickleError("it asks for more memory than there is") from error
    except Exception as error:  # a damaged pickle can fail in any of its instructions
        raise PickleError(f"{type(error).__name__}: {error}") from error


class _Inert(dict[Any, Any]):
    """Stand-in for any class or function that a pickle names."""

    def __init__(self, *arguments: Any) -> None:
        for argument in arguments:
            for item in argument if isinstance(argument, list) else [argument]:
                _check_key(item)

    def __setstate__(self, state: Any) -> None:
        """Drop the state."""


class _KeyChecker(_Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _Inert

    def persistent_load(self, pid: Any) -> Any:
        _check_key(pid)


def check_keys(file: BinaryIO) -> None:
    """Read the next pickle of a file for its keys only, before a reader that does not check them.

    Raises:
        PickleError: a key has too many nested parts. Whatever else is wrong is left to the reader.
    """
    try:
        _KeyChecker(file, {}).load()
    except PickleError:
        raise
    except Exception:  # damage can fail in any way
        return
