"""The CUDA source on a machine without a GPU: compiled as C++, with a driver that runs kernels on the CPU.

All of mask2former/ops/cuda is used, ctypes included; only libcuda.so is replaced. That driver fails if a
kernel reads or adds outside of its tensors, or misaligned, or if lanes diverge before a shuffle.
"""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mask2former.ops import reference
from mask2former.ops.cuda import backend as cuda
from mask2former.ops.cuda import driver, kernels, nvrtc
from mask2former.ops.reference import AttentionInputs

HERE = Path(__file__).parents[2] / "support"
SHAPES = ((5, 7), (3, 4), (1, 1))
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
TYPES = list(TOLERANCE)


class Field(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("offset", ctypes.c_size_t), ("size", ctypes.c_size_t)]


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """Return the path of the CPU driver, which contains the kernels."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if not compiler:
        pytest.skip("no C++ compiler")
    path = tmp_path_factory.mktemp("cuda_on_cpu") / "libcuda.so"
    sources = ["-I", str(kernels.SOURCE.parent), "-x", "c++", str(HERE / "cuda_on_cpu" / "driver.cpp")]
    options = ["-std=c++17", "-O1", "-Wno-unknown-pragmas", "-shared", "-fPIC"]
    subprocess.run([compiler, *options, *sources, "-o", str(path)], check=True)
    return path


@pytest.fixture
def on_cpu(library, monkeypatch, tmp_path):
    """Let the CUDA backend work on CPU tensors, with kernels from a fatbin, and fill new memory with NaN."""
    (tmp_path / "fatbin").write_bytes(b"any")
    monkeypatch.setattr(driver, "LIBRARY", str(library))
    monkeypatch.setattr(kernels, "FATBIN", tmp_path / "fatbin")
    monkeypatch.setattr(cuda, "_stream", lambda device: 0)
    clear_caches()
    torch.use_deterministic_algorithms(True)
    yield tmp_path
    torch.use_deterministic_algorithms(False)
    clear_caches()


def clear_caches():
    for function in (driver._library, driver._primary_context, kernels._fatbin, kernels.function_for):
        function.cache_clear()


def case(form="fused", shapes=SHAPES, batch=2, queries=9, heads=2, points=2, channels=8, dtype=torch.float32,
         references=(1, 1), seed=0):  # fmt: skip
    """Return random inputs, with some points outside of their map."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*size):
        return torch.rand(size, generator=generator)

    value = (rand(batch, sum(h * w for h, w in shapes), heads, channels) - 0.5).to(dtype)
    places = rand(batch, queries, heads, len(shapes), points, 2)
    weights = rand(batch, queries, heads, len(shapes), points)
    if form == "plain":
        return AttentionInputs(value, shapes, places * 1.6 - 0.3, weights)
    images, levels = batch if references[0] > 1 else 1, len(shapes) if references[1] > 1 else 1
    return AttentionInputs(value, shapes, places * 8 - 4, weights * 10 - 5, rand(images, queries, levels, 2))


def gradient(arguments):
    """Return a random gradient of the output, of its type."""
    value, _, points, *_ = arguments
    size = (value.shape[0], points.shape[1], value.shape[2] * value.shape[3])
    return torch.rand(size, generator=torch.Generator().manual_seed(1)).sub(0.5).to(value.dtype)


def check(arguments):
    """Compare both directions with PyTorch in float64."""
    tolerance = TOLERANCE[arguments.value.dtype]
    exact = AttentionInputs(*(x.double() if isinstance(x, torch.Tensor) else x for x in arguments))
    close(cuda.forward(arguments), reference.forward(exact), tolerance)
    grad = gradient(arguments)
    found, wanted = cuda.backward(grad, arguments), reference.backward(grad.double(), exact)
    assert [item.dtype for item in found] == [arguments.value.dtype, torch.float32, torch.float32]
    close(found[0], wanted[0], tolerance)
    kept = between_cells(*exact[1:])
    close(found[1] * kept, wanted[1] * kept, 2e-5)
    close(found[2], wanted[2], 2e-5)


def close(found, wanted, tolerance):
    assert found.shape == wanted.shape
    scale = wanted.abs().max().clamp(min=1)
    assert (found.double() - wanted).abs().max() <= tolerance * scale


def between_cells(shapes, points, weights, origin):
    """Return True where neither coordinate is at a cell's center, where the gradient of points jumps."""
    sides = torch.tensor([[width, height] for height, width in shapes])[:, None]
    cells = points * sides if origin is None else origin[:, :, None, :, None] * sides + points
    return ((cells - 0.5 - (cells - 0.5).round()).abs() > 1e-5).all(-1, keepdim=True)


def name_for(direction, arguments):
    """Return the name of the kernel that the backend chooses for a call."""
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "function_for", lambda device, kernel: asked.append(kernel))
        patch.setattr(driver, "launch", lambda *rest: None)
        if direction == "forward":
            cuda.forward(arguments)
        else:
            cuda.backward(gradient(arguments), arguments)
    return kernels.function_for(-1, asked[0]).name


def test_struct_layout(library):
    loaded = ctypes.CDLL(str(library))
    fields = (Field * (len(cuda.Problem._fields_) + 1)).in_dll(loaded, "fields")
    ours = [(name, getattr(cuda.Problem, name).offset, getattr(cuda.Problem, name).size)
            for name, _ in cuda.Problem._fields_]  # fmt: skip
    assert [(field.name.decode(), field.offset, field.size) for field in fields] == [
        *ours,
        ("", ctypes.sizeof(cuda.Problem), 0),
    ]
    assert ctypes.sizeof(cuda.Problem) <= 4096  # what a launch may pass
    numbers = (ctypes.c_int * 3).in_dll(loaded, "numbers")
    assert list(numbers) == [cuda.THREADS, cuda.WARP, cuda.MAX_LEVELS]


def test_sixteen_bit_numbers_of_the_driver(library):
    """Compare the header's conversion of halves, and the source's rounding to bfloat16, with torch's."""
    loaded = ctypes.CDLL(str(library))
    loaded.widen_half.restype = ctypes.c_float
    halves = torch.arange(0x10000, dtype=torch.int32).to(torch.int16).view(torch.float16)
    widened = torch.tensor([loaded.widen_half(bits) for bits in range(0x10000)])
    torch.testing.assert_close(widened, halves.float(), rtol=0, atol=0, equal_nan=True)
    generator = torch.Generator().manual_seed(0)
    exponents = torch.randint(-30, 20, (5000,), generator=generator)
    numbers = torch.ldexp(torch.randn(5000, generator=generator), exponents)
    halfway = [1 + 2**-11, 1 + 3 * 2**-11, 2**-25, 1 + 2**-8, 1 + 3 * 2**-8]
    edges = torch.tensor([0.0, -0.0, 65519.9, 65520.0, *halfway, torch.inf, -torch.inf, torch.nan])
    for number in torch.cat([numbers, edges]):
        for narrow, dtype in (loaded.narrow_half, torch.float16), (loaded.narrow_bfloat16, torch.bfloat16):
            bits = narrow(ctypes.c_float(number)) & 0xFFFF
            found = torch.tensor(bits, dtype=torch.int32).to(torch.int16).view(dtype)
            torch.testing.assert_close(found, number.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("references", [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_kernels_for_the_pixel_decoder(on_cpu, dtype, references):
    arguments = case(heads=8, points=4, channels=32, dtype=dtype, references=references)
    for direction in ("forward", "backward"):
        assert name_for(direction, arguments).endswith("_fused_8_3_4_32_vector")
    check(arguments)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("form", ["plain", "fused"])
@pytest.mark.parametrize("channels", [1, 3, 4, 8, 12, 16, 33, 64, 160])
def test_general_kernels(on_cpu, channels, form, dtype):
    """Teams have 1 to 32 lanes; some lanes have no channels, or several."""
    arguments = case(form, channels=channels, dtype=dtype, queries=5)
    assert "_either_0_0_0_0_" in name_for("forward", arguments)
    check(arguments)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    form=st.sampled_from(["plain", "fused"]),
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4).map(tuple),
    batch=st.integers(1, 3),
    queries=st.integers(1, 40),
    heads=st.integers(1, 5),
    points=st.integers(1, 5),
    channels=st.integers(1, 70),
    dtype=st.sampled_from(TYPES),
    references=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    seed=st.integers(0, 100),
)
def test_any_sizes(on_cpu, **sizes):
    check(case(**sizes))


@pytest.mark.parametrize(
    "arguments",
    [
        case("plain", shapes=((3, 2), (2, 5)), points=2, channels=8),
        case("fused", shapes=((3, 2),), heads=1, points=3, channels=3, dtype=torch.bfloat16),
        case("fused", shapes=((6, 5),), points=40, channels=8, dtype=torch.float16),
        case("fused", shapes=((6, 5),), heads=1, points=1, channels=37),
    ],
)  # fmt: skip
def test_kernels_made_for_a_call(on_cpu, arguments, monkeypatch):
    """NVRTC compiles them where the fatbin has none for the device; the driver runs its own all the same."""
    if nvrtc.why_unavailable():
        pytest.skip(nvrtc.why_unavailable())
    (on_cpu / "fatbin").write_bytes(b"foreign to this device")
    monkeypatch.setenv("XDG_CACHE_HOME", str(on_cpu))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert "either" not in name_for("backward", arguments)
    check(arguments)


@pytest.mark.parametrize("queries", [1, 31, 32, 33, 255, 256, 257])
def test_queries_that_do_not_fill_a_block(on_cpu, queries):
    check(case(shapes=((4, 4),), batch=1, heads=1, points=1, channels=4, queries=queries))
    check(case(shapes=((4, 4),), batch=1, heads=1, points=1, channels=32, queries=queries // 8 + 1))


def test_more_images_than_a_grid_has_layers(on_cpu, monkeypatch):
    monkeypatch.setattr(cuda, "MAX_GRID", 2)
    check(case(batch=5, references=(2, 2)))


@pytest.mark.parametrize("form", ["plain", "fused"])
def test_non_finite_points_contribute_nothing(on_cpu, form):
    places = [torch.nan, torch.inf, -torch.inf, 3e38, -3e38, 1e10, -1e10]
    for channels in (3, 8):
        arguments = case(form, channels=channels)
        points = arguments.points
        for number, place in enumerate(places):
            points[0, number, 0, 0, 0, number % 2] = place
        near = points.clone()
        near[0, : len(places), 0, 0, 0] = -50
        found, wanted = cuda.forward(arguments), cuda.forward(arguments._replace(points=near))
        assert torch.equal(found, wanted)
        grad = gradient(arguments)
        found = cuda.backward(grad, arguments)
        for ours, theirs in zip(found, cuda.backward(grad, arguments._replace(points=near)), strict=True):
            assert torch.equal(ours, theirs)
        assert not found[1][0, : len(places), 0, 0, 0].any()


def test_values_outside_of_what_is_sampled_do_not_matter(on_cpu):
    arguments = case("plain", shapes=((4, 4),), batch=1, heads=1, queries=1, points=1)
    value, _, points, weights, _ = arguments
    points[...] = torch.tensor([0.0, 0.5])  # half a cell left of the map's first column
    value.fill_(torch.nan)
    value.view(4, 4, -1)[1:3, 0] = 1.0
    found = cuda.forward(arguments)
    torch.testing.assert_close(found, (weights.sum() / 2).expand_as(found))


def test_misaligned_tensors(on_cpu):
    def moved(tensor):
        return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)

    value, shapes, points, weights, origin = case(heads=8, points=4, channels=32)
    arguments = AttentionInputs(moved(value), shapes, moved(points), moved(weights), moved(origin))
    assert all(item.data_ptr() % 16 for item in arguments if isinstance(item, torch.Tensor))
    check(arguments)


@pytest.mark.parametrize("shapes", [((0, 0),), ((0, 3), (2, 2)), ((2, 2), (0, 0))])
def test_levels_without_cells(on_cpu, shapes):
    arguments = case(shapes=shapes)
    assert torch.isfinite(cuda.forward(arguments)).all()
    assert all(torch.isfinite(found).all() for found in cuda.backward(gradient(arguments), arguments))
    if sum(height * width for height, width in shapes):
        check(arguments)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (case(shapes=((1, 1),) * 65), "at most 64 levels, not 65"),
        (case(shapes=((2**24 + 1, 0), (1, 1))), "cells along a side, not 16777217"),
        (
            case(shapes=((1, 1),), batch=1, heads=65536, points=1, channels=1, queries=1),
            "65535 heads, not 65",
        ),
    ],
)
def test_sizes_that_overflow_the_kernels_are_refused(on_cpu, arguments, words):
    with pytest.raises(ValueError, match=words):
        cuda.forward(arguments)


def test_a_failed_launch_names_error_and_kernel(on_cpu, monkeypatch):
    monkeypatch.setattr(cuda, "THREADS", 128)
    with pytest.raises(driver.DriverError, match=r"CUDA_ERROR_LAUNCH_FAILED \(719\).*forward_float32_either"):
        cuda.forward(case())


def test_without_a_driver(monkeypatch):
    monkeypatch.setattr(driver, "LIBRARY", "libno_such_driver.so")
    clear_caches()
    assert "libno_such_driver.so" in driver.why_unavailable()
    if not torch.cuda.is_available():
        assert cuda.why_unavailable() == "torch sees no CUDA device"
