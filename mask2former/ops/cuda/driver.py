"""The few calls of the CUDA driver that load machine code and launch a kernel, with ctypes.

The driver belongs to the machine, unlike the runtime, so nothing here depends on torch's version. Each call
works in the device's primary context, the one that torch uses.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char_p, c_int, c_uint, c_void_p
from functools import cache
from typing import NamedTuple

LIBRARY = "libcuda.so.1"
NOT_FOUND = 500  # CUDA_ERROR_NOT_FOUND
ARGUMENTS = {
    "cuInit": [c_uint],
    "cuGetErrorName": [c_int, POINTER(c_char_p)],
    "cuDeviceGet": [POINTER(c_int), c_int],
    "cuDevicePrimaryCtxRetain": [POINTER(c_void_p), c_int],
    "cuCtxPushCurrent_v2": [c_void_p],
    "cuCtxPopCurrent_v2": [POINTER(c_void_p)],
    "cuModuleLoadData": [POINTER(c_void_p), c_char_p],
    "cuModuleGetFunction": [POINTER(c_void_p), c_void_p, c_char_p],
    "cuLaunchKernel": [c_void_p, *[c_uint] * 7, c_void_p, POINTER(c_void_p), POINTER(c_void_p)],
}


class DriverError(RuntimeError):
    """Failure of a driver call; `code` is its CUresult."""

    def __init__(self, code: int, doing: str) -> None:
        name = c_char_p()
        _library().cuGetErrorName(code, byref(name))
        super().__init__(f"{(name.value or b'an unknown error').decode()} ({code}) while {doing}")
        self.code = code


class Function(NamedTuple):
    """A kernel loaded on a device."""

    name: str
    device: int
    handle: c_void_p


class Module(NamedTuple):
    """Machine code loaded on a device. The driver may read `image` during the module's whole life."""

    device: int
    handle: c_void_p
    image: bytes

    def function(self, name: str) -> Function | None:
        """Return the kernel of that name, or None if the module has none."""
        handle = c_void_p()
        with _context_of(self.device):
            code = _library().cuModuleGetFunction(byref(handle), self.handle, name.encode())
        if code == NOT_FOUND:
            return None
        _check(code, f"looking for the kernel {name}")
        return Function(name, self.device, handle)


def why_unavailable() -> str | None:
    """Return None if the driver works, else the reason in one sentence."""
    try:
        _library()
    except (OSError, AttributeError, DriverError) as error:
        return f"the CUDA driver cannot be used: {error}"
    return None


def load_module(device: int, image: bytes) -> Module:
    """Load a cubin, fatbin, or PTX with a final zero byte; raise DriverError if the device cannot run it."""
    handle = c_void_p()
    with _context_of(device):
        _check(_library().cuModuleLoadData(byref(handle), image), "loading machine code")
    return Module(device, handle, image)


def launch(
    function: Function, grid: tuple[int, int, int], threads: int, stream: int, argument: ctypes.Structure
) -> None:
    """Launch a kernel with one argument, by value, on a stream of its device."""
    parameters = (c_void_p * 1)(ctypes.addressof(argument))
    with _context_of(function.device):
        code = _library().cuLaunchKernel(function.handle, *grid, threads, 1, 1, 0, stream, parameters, None)
    _check(code, f"launching the kernel {function.name} on a grid of {grid}")


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(LIBRARY)
    for name, arguments in ARGUMENTS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, c_int
    code = library.cuInit(0)
    if code:
        raise OSError(f"cuInit returned {code}")
    return library


@cache
def _primary_context(device: int) -> c_void_p:
    ordinal, context = c_int(), c_void_p()
    _check(_library().cuDeviceGet(byref(ordinal), device), f"looking for device {device}")
    code = _library().cuDevicePrimaryCtxRetain(byref(context), ordinal)
    _check(code, f"asking for the context of device {device}")
    return context


@contextmanager
def _context_of(device: int) -> Iterator[None]:
    """Make the device's context current; a thread of autograd may have none yet."""
    _check(
        _library().cuCtxPushCurrent_v2(_primary_context(device)), f"entering the context of device {device}"
    )
    try:
        yield
    finally:
        _library().cuCtxPopCurrent_v2(byref(c_void_p()))


def _check(code: int, doing: str) -> None:
    if code:
        raise DriverError(code, doing)
