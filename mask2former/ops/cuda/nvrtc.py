"""Compilation of CUDA source at run time with NVRTC, part of torch's CUDA builds, with a cache on disk."""

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Iterator
from ctypes import byref, c_char_p, c_int, c_size_t, c_void_p
from functools import cache
from pathlib import Path

import torch

MAJORS = ("13", "12")  # of CUDA


class CompileError(RuntimeError):
    """Failure of NVRTC to compile."""


def why_unavailable() -> str | None:
    """Return None if NVRTC works, else the reason in one sentence."""
    try:
        _library()
    except OSError as error:
        return str(error)
    return None


def version() -> tuple[int, int]:
    """Return NVRTC's version, that of its CUDA toolkit."""
    major, minor = c_int(), c_int()
    _check(_library().nvrtcVersion(byref(major), byref(minor)))
    return major.value, minor.value


def architectures() -> list[int]:
    """Return the architectures that NVRTC can compile for, ascending: 90 is sm_90."""
    count = c_int()
    _check(_library().nvrtcGetNumSupportedArchs(byref(count)))
    known = (c_int * count.value)()
    _check(_library().nvrtcGetSupportedArchs(known))
    return sorted(known)


def target(capability: tuple[int, int]) -> str:
    """Return the target for a device: sm_90, or if NVRTC does not know it, an older one's PTX: compute_90."""
    wanted = capability[0] * 10 + capability[1]
    older = [known for known in architectures() if known <= wanted]
    if not older:
        raise CompileError(
            f"NVRTC {_dotted(version())} cannot compile for compute capability {_dotted(capability)}"
        )
    return f"{'sm' if older[-1] == wanted else 'compute'}_{older[-1]}"


def compile_source(source: str, options: tuple[str, ...]) -> bytes:
    """Compile, or return the result from the cache on disk.

    A cache file that is damaged, or cannot be read or written, only costs a compilation.
    """
    key = hashlib.sha256(repr((version(), options, source)).encode()).hexdigest()
    path = cache_folder() / key
    image = _read(path)
    if image is None:
        image = _compile(source, options)
        with contextlib.suppress(OSError):
            _write(path, image)
    return image


def cache_folder() -> Path:
    """Return the directory of compiled kernels."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "mask2former" / "kernels"


def _read(path: Path) -> bytes | None:
    """Return the image that `_write` wrote, or None if it is missing or damaged."""
    try:
        digest, image = path.read_bytes().split(b"\n", 1)
    except (OSError, ValueError):
        return None
    return image if hashlib.sha256(image).hexdigest().encode() == digest else None


def _write(path: Path, image: bytes) -> None:
    """Write atomically, so that another process sees the whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(image).hexdigest().encode() + b"\n" + image)
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def _compile(source: str, options: tuple[str, ...]) -> bytes:
    """Return a cubin, or PTX for a virtual architecture; raises CompileError with NVRTC's log."""
    library, program = _library(), c_void_p()
    _check(library.nvrtcCreateProgram(byref(program), source.encode(), b"kernel.cu", 0, None, None))
    try:
        given = (c_char_p * len(options))(*(option.encode() for option in options))
        if library.nvrtcCompileProgram(program, len(options), given):
            log = _get(program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
            raise CompileError(f"NVRTC {_dotted(version())} cannot compile with {' '.join(options)}:\n{log}")
        is_virtual = any("=compute_" in option for option in options)
        return _get(program, "PTX" if is_virtual else "CUBIN")
    finally:
        library.nvrtcDestroyProgram(byref(program))


def _get(program: c_void_p, what: str) -> bytes:
    size = c_size_t()
    _check(getattr(_library(), f"nvrtcGet{what}Size")(program, byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(_library(), f"nvrtcGet{what}")(program, buffer))
    return buffer.raw


def _check(code: int) -> None:
    if code:
        raise CompileError(f"NVRTC: {_library().nvrtcGetErrorString(code).decode()}")


@cache
def _library() -> ctypes.CDLL:
    """Return the first NVRTC that loads; raises OSError if none does."""
    for name in _candidates():
        with contextlib.suppress(OSError):
            library = ctypes.CDLL(name)
            library.nvrtcGetErrorString.restype = c_char_p
            return library
    raise OSError(
        "no NVRTC library (libnvrtc.so) was found: install a CUDA build of torch, or nvidia-cuda-nvrtc"
    )


def _candidates() -> Iterator[str]:
    """Yield libraries on the loader's path, in packages and in toolkits; torch's CUDA version first."""
    own = (torch.version.cuda or "").split(".")[0]
    package = importlib.util.find_spec("nvidia")
    packages = [Path(folder) for folder in (package and package.submodule_search_locations) or ()]
    toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    for major in sorted(MAJORS, key=lambda major: major != own):
        name = f"libnvrtc.so.{major}"
        yield name
        for folder in packages:
            yield from map(str, sorted(folder.glob(f"*/lib/{name}")))
        yield str(toolkit / "lib64" / name)


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
