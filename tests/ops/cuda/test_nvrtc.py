"""NVRTC compiles the CUDA source, which needs no GPU; the cache on disk may be damaged or missing."""

import pytest
import torch

from mask2former.ops.cuda import kernels, nvrtc
from mask2former.ops.cuda.kernels import Kernel

TYPES = ("float32", "float16", "bfloat16")
PIXEL_DECODER = [
    Kernel(direction, name, "fused", 8, 3, 4, 32, "vector")
    for direction in ("forward", "backward")
    for name in TYPES
]
OTHERS = [
    Kernel("forward", "float32", "plain", 8, 3, 4, 32, "vector"),
    Kernel("backward", "float32", "plain", 8, 3, 4, 32, "vector"),
    Kernel("forward", "bfloat16", "plain", 1, 5, 3, 7, "scalar"),
    Kernel("backward", "float16", "fused", 2, 1, 8, 200, "scalar"),
    Kernel("forward", "float16", "fused", 4, 0, 0, 64, "vector"),
]
SMALL = 'extern "C" __global__ void small(float* x) { *x = 1; }'


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Return the directory of compiled kernels, empty at first."""
    if nvrtc.why_unavailable():
        pytest.skip(nvrtc.why_unavailable())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return nvrtc.cache_folder()


def compile_all(architecture, compiled):
    definitions = " ".join(kernel.definition for kernel in compiled)
    options = (f"--gpu-architecture={architecture}", "--std=c++17", f"-DKERNELS={definitions}")
    return nvrtc.compile_source(kernels.SOURCE.read_text(), options)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100", "sm_120"])
def test_the_pixel_decoders_kernels(architecture):
    number = int(architecture.removeprefix("sm_"))
    if nvrtc.target(divmod(number, 10)) != architecture:
        pytest.skip(f"this NVRTC is too old for {architecture}")
    image = compile_all(architecture, PIXEL_DECODER)
    assert image.startswith(b"\x7fELF")
    assert all(kernel.name.encode() in image for kernel in PIXEL_DECODER)


@pytest.mark.parametrize("kernel", OTHERS, ids=lambda kernel: kernel.name)
def test_kernels_of_other_sizes(kernel):
    assert kernel.name.encode() in kernels.compile_kernel("sm_90", kernel)


def test_the_list_that_nvcc_compiles():
    text = kernels.SOURCE.read_text()
    image = nvrtc.compile_source(text, ("--gpu-architecture=sm_90", "--std=c++17"))
    general = [
        kernel.general()._replace(width=width) for kernel in PIXEL_DECODER for width in ("vector", "scalar")
    ]
    assert all(kernel.name.encode() in image for kernel in [*PIXEL_DECODER, *general])


def test_nothing_is_kept_in_local_memory():
    """An array that is indexed at run time would be kept there, which is slow."""
    assert b".local" not in compile_all("compute_90", [*PIXEL_DECODER, *OTHERS])


@pytest.mark.parametrize("architecture, at_once", [("compute_80", False), ("compute_90", True)])
def test_additions_take_four_channels_at_once_where_the_device_can(architecture, at_once):
    assert (b"red.global.add.v4.f32" in compile_all(architecture, PIXEL_DECODER)) == at_once


@pytest.mark.parametrize(
    "capability, name",
    [((8, 0), "sm_80"), ((8, 9), "compute_80"), ((10, 3), "compute_100"), ((13, 0), "compute_120")],
)
def test_target(monkeypatch, capability, name):
    """NVRTC makes machine code for a device that it knows, else PTX of the latest before it."""
    monkeypatch.setattr(nvrtc, "architectures", lambda: [75, 80, 90, 100, 120])
    assert nvrtc.target(capability) == name
    with pytest.raises(nvrtc.CompileError, match=r"cannot compile for compute capability 6\.1"):
        nvrtc.target((6, 1))


def test_this_nvrtc_knows_its_version_and_the_common_architectures():
    assert {80, 90, 100, 120} <= set(nvrtc.architectures())
    assert nvrtc.version() >= (12, 0)


def test_a_source_that_does_not_compile_is_an_error_with_the_log():
    with pytest.raises(nvrtc.CompileError, match=r"(?s)sm_90.*undefined_name"):
        nvrtc.compile_source("int x = undefined_name;", ("--gpu-architecture=sm_90",))


def compilations(text=SMALL, options=("--gpu-architecture=sm_90",)):
    """Return how often `compile_source` compiled, and its result."""
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        compile_now = nvrtc._compile
        patch.setattr(nvrtc, "_compile", lambda *given: calls.append(given) or compile_now(*given))
        image = nvrtc.compile_source(text, options)
    return len(calls), image


def test_a_cached_kernel_is_not_compiled_again(cache, monkeypatch):
    count, image = compilations()
    assert count == 1 and b"small" in image
    assert compilations() == (0, image)
    assert len(list(cache.iterdir())) == 1
    assert compilations(text=SMALL + "\n")[0] == 1
    assert compilations(options=("--gpu-architecture=sm_80",))[0] == 1
    monkeypatch.setattr(nvrtc, "version", lambda: (99, 0))
    assert compilations()[0] == 1


@pytest.mark.parametrize("damage", [b"", b"no digest", b"0" * 64 + b"\n" + b"\x7fELF", None])
def test_a_damaged_file_is_replaced(cache, damage):
    _, image = compilations()
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] if damage is None else damage)
    assert compilations() == (1, image)
    assert file.read_bytes() == whole
    assert compilations()[0] == 0


def test_a_cache_that_cannot_be_used_costs_only_time(cache):
    _, image = compilations()
    (file,) = cache.iterdir()
    file.unlink()
    file.mkdir()  # a directory in place of the file
    assert compilations() == (1, image)
    assert list(cache.iterdir()) == [file]  # no temporary file stays
    file.rmdir()
    cache.rmdir()
    cache.write_text("not a directory")
    assert compilations() == (1, image)


def test_the_cache_is_in_the_home_directory_by_default(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(nvrtc.cache_folder()) == "/home/somebody/.cache/mask2former/kernels"


def test_without_a_library(monkeypatch):
    monkeypatch.setattr(nvrtc, "_candidates", lambda: ["libno_such_nvrtc.so"])
    nvrtc._library.cache_clear()
    assert "nvidia-cuda-nvrtc" in nvrtc.why_unavailable()
    monkeypatch.setattr(kernels, "FATBIN", kernels.FATBIN.with_name("missing"))
    assert "was not built at installation" in kernels.why_unavailable()
    nvrtc._library.cache_clear()


def test_torchs_own_cuda_version_comes_first(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.9")
    assert next(iter(nvrtc._candidates())) == "libnvrtc.so.12"
