"""Compile CUDA text at run time with NVRTC, which torch's CUDA builds bring, and keep the results on disk."""

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
    """NVRTC refused a text, or what was asked of it."""


def why_unavailable() -> str | None:
    """What hinders compiling, in a sentence; None where nothing does."""
    try:
        _library()
    except OSError as error:
        return str(error)
    return None


def version() -> tuple[int, int]:
    """NVRTC's version, which is that of the CUDA toolkit that it belongs to."""
    major, minor = c_int(), c_int()
    _check(_library().nvrtcVersion(byref(major), byref(minor)))
    return major.value, minor.value


def architectures() -> list[int]:
    """What NVRTC can compile for, ascending: 90 for sm_90."""
    count = c_int()
    _check(_library().nvrtcGetNumSupportedArchs(byref(count)))
    known = (c_int * count.value)()
    _check(_library().nvrtcGetSupportedArchs(known))
    return sorted(known)


def target(capability: tuple[int, int]) -> str:
    """What to compile for: sm_90, or where NVRTC does not know the device, PTX of an older one: compute_90.

    Raises CompileError for a device that is older than all that NVRTC knows.
    """
    wanted = capability[0] * 10 + capability[1]
    older = [known for known in architectures() if known <= wanted]
    if not older:
        raise CompileError(
            f"NVRTC {_dotted(version())} cannot compile for compute capability {_dotted(capability)}"
        )
    return f"{'sm' if older[-1] == wanted else 'compute'}_{older[-1]}"


def compile_text(text: str, options: tuple[str, ...]) -> bytes:
    """What `_compile` gives, from the cache on disk where it is there.

    A file that is damaged, or cannot be read or written, costs a compilation and nothing else.
    """
    key = hashlib.sha256(repr((version(), options, text)).encode()).hexdigest()
    path = cache_folder() / key
    image = _read(path)
    if image is None:
        image = _compile(text, options)
        with contextlib.suppress(OSError):
            _write(path, image)
    return image


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "mask2former" / "kernels"


def _read(path: Path) -> bytes | None:
    """The image that `_write` wrote; None where there is none, or it is not whole."""
    try:
        digest, image = path.read_bytes().split(b"\n", 1)
    except (OSError, ValueError):
        return None
    return image if hashlib.sha256(image).hexdigest().encode() == digest else None


def _write(path: Path, image: bytes) -> None:
    """In one step, so that another process sees all of the file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(image).hexdigest().encode() + b"\n" + image)
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def _compile(text: str, options: tuple[str, ...]) -> bytes:
    """A cubin, or PTX if the options ask for a virtual architecture. Raises CompileError with NVRTC's log."""
    library, program = _library(), c_void_p()
    _check(library.nvrtcCreateProgram(byref(program), text.encode(), b"kernel.cu", 0, None, None))
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
    """The first NVRTC that loads. Raises OSError where none does."""
    for name in _candidates():
        with contextlib.suppress(OSError):
            library = ctypes.CDLL(name)
            library.nvrtcGetErrorString.restype = c_char_p
            return library
    raise OSError(
        "no NVRTC library (libnvrtc.so) was found: torch's CUDA builds or nvidia-cuda-nvrtc bring it"
    )


def _candidates() -> Iterator[str]:
    """On the loader's path, in packages, in toolkits; first those of the CUDA version that torch has."""
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
