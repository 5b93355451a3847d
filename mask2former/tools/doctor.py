"""The command `mask2former doctor`: report what is installed on this machine, to paste into an issue.

It works in a broken installation, even without torch: a check that fails is a line of the report.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

from mask2former.engine.setup.cores import THREADS_CHOSEN, affinity, job_cores, thread_share
from mask2former.tools.arguments.doctor import parse_arguments
from mask2former.utils.aliases import run_alias
from mask2former.utils.messages import plural
from mask2former.version import __version__, commit

Facts = Iterator[tuple[str, str]]  # (name, value) pairs

PACKAGE = Path(__file__).parents[1]
COMPILED_FILES = ("_cpu.so", "_cuda.fatbin")  # in ops/, made at installation
INSTRUCTIONS = r"avx2|avx512(f|bw|_bf16|_fp16)|amx_(tile|bf16)|asimd|sve2?|bf16|i8mm"  # affect speed
TOLERANCE = 1e-4
REBUILD = "get a C++ compiler (g++ or clang++), then install again; in a clone: pip install --no-deps -e ."
CUDA_TORCH = "get a CUDA build of torch: https://pytorch.org/get-started/locally"
CUDA_PARTS = "get NVRTC (pip install nvidia-cuda-nvrtc), or nvcc and install again"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(parse_arguments(argv))


def run(args: argparse.Namespace) -> int:
    """Print the report; there are no flags."""
    print(report())
    return 0


def report() -> str:
    """Return the report, one fact per line; the home folder is written as ~."""
    sections: dict[str, Callable[[], Facts]] = {
        "versions": _versions,
        "packages": _packages,
        "processor": _processor,
        "GPU": _gpu,
        "deformable attention": _operator,
        "missing": _missing,
    }
    lines = []
    for title, facts in sections.items():
        lines.append(title)
        try:
            for name, fact in facts():
                lines.append(f"  {name}: " + fact.replace("\n", "\n    "))
        except Exception as error:  # the report must work in a broken installation
            lines.append(f"  {_failure(error)}")
        if lines[-1] == title:
            lines.append("  nothing")
    text, home = "\n".join(lines), Path.home()
    return text if home == Path(home.root) else text.replace(str(home), "~")


def _failure(error: Exception) -> str:
    return f"FAILS with {type(error).__name__}: {error}"


def _environment(*variables: str) -> Facts:
    for variable in variables:
        yield variable, os.environ.get(variable, "not set")


def _versions() -> Facts:
    yield "mask2former", f"{__version__} (commit {commit()}) in {PACKAGE}"
    yield "Python", f"{platform.python_version()} ({platform.python_implementation()})"
    yield "system", platform.platform()


def _packages() -> Facts:
    try:
        lines = metadata.requires("mask2former") or []
    except metadata.PackageNotFoundError:  # its requirements are known only if it is installed
        lines = ["mask2former"]
    for name in (re.split(r"[^\w.-]", line)[0] for line in lines if "extra ==" not in line):
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            yield name, "MISSING"


def _processor() -> Facts:
    path = Path("/proc/cpuinfo")  # on Linux alone
    text = path.read_text() if path.exists() else ""
    name = re.search(r"^model name\s*: (.*)", text, re.MULTILINE)
    yield "name", name[1] if name else platform.processor() or platform.machine()
    flags = re.search(r"^(?:flags|Features)\s*: (.*)", text, re.MULTILINE)
    instructions = [flag for flag in (flags[1] if flags else "").split() if re.fullmatch(INSTRUCTIONS, flag)]
    yield "instructions", " ".join(instructions) or "unknown"
    yield "cores", f"{os.cpu_count()}, {affinity()} of them for this process"
    job = job_cores(affinity(), os.environ)
    yield "usable cores", f"{job.number:g} ({job.reason})"
    yield from _environment(*THREADS_CHOSEN)
    import torch

    from mask2former.engine.setup import threads

    yield from _environment(*threads.WAIT_POLICIES)
    yield "torch", f"{plural(torch.get_num_threads(), 'thread')}, {torch.backends.cpu.get_cpu_capability()}"
    share = thread_share(torch.get_num_threads(), os.environ)
    yield "threads chosen", f"{share.number} ({share.reason})"
    fixed = threads.why_not_adapted(int(share.number), os.environ)
    adapted = "they spin, or sleep while other programs use the processor"
    yield "waiting of threads", f"the OpenMP library decides ({fixed})" if fixed else adapted


def _gpu() -> Facts:
    yield "NVIDIA's driver", _driver() or "none, or no nvidia-smi"
    yield from _environment("CUDA_VISIBLE_DEVICES")
    import torch

    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    yield "torch is built for", f"ROCm {torch.version.hip}" if torch.version.hip else built
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        gigabytes = device.total_memory / 2**30
        yield f"device {index}", f"{device.name}, sm_{device.major}{device.minor}, {gigabytes:.0f} GiB"


def _driver() -> str | None:
    """Return the version of the driver and the names of the GPUs, independent of torch."""
    query = ["nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader"]
    try:
        run = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return "; ".join(run.stdout.strip().splitlines()) or None


def _operator() -> Facts:
    import torch

    from mask2former.ops import backends
    from mask2former.ops.cuda import nvrtc

    yield from _environment(backends.VARIABLE)
    for name in COMPILED_FILES:
        file = PACKAGE / "ops" / name
        yield name, f"{file.stat().st_size / 1024:.0f} KiB" if file.exists() else "not there"
    yield "NVRTC", nvrtc.why_unavailable() or "{}.{}".format(*nvrtc.version())
    for name in backends.BACKENDS:
        if reason := backends.BACKENDS[name].why_unavailable():
            yield f"backend {name}", f"not available: {reason}"
            continue
        try:
            worst = _worst_error(name)
            yield f"backend {name}", "works" if worst < TOLERANCE else f"WRONG by {worst:.2g}"
        except Exception as failure:
            yield f"backend {name}", _failure(failure)
    others = (name for name in ("cuda", "mps", "xpu") if getattr(torch, name).is_available())
    for device in ("cpu", *others):
        try:
            choice = backends.choose(device)
            yield f"chosen on {device}", f"{choice.name} ({choice.reason})"
        except ValueError as error:
            yield f"chosen on {device}", _failure(error)


def _worst_error(name: str) -> float:
    """Return the largest error of an output and its gradients, against PyTorch in float64."""
    import torch

    from mask2former.ops import backends
    from mask2former.ops.reference import AttentionInputs

    shapes, samples = ((5, 6), (2, 3)), (1, 36, 2, 2, 4)  # samples: images, queries, heads, levels, points
    generator = torch.Generator().manual_seed(0)
    sizes = ((1, 36, 2, 8), (*samples, 2), samples, (1, 36, 1, 2), (1, 36, 16))
    tensors = [torch.randn(size, generator=generator) for size in sizes]
    tensors[3] = tensors[3].sigmoid()  # the reference points

    def compute(name: str, device: str, dtype: torch.dtype) -> list[torch.Tensor]:
        module = backends.BACKENDS[name]
        value, points, weights, reference, grad = (tensor.to(device, dtype) for tensor in tensors)
        inputs = AttentionInputs(value, shapes, points, weights, reference)
        results = [module.forward(inputs), *module.backward(grad, inputs)]
        return [result.double().cpu() for result in results]

    results = compute(name, "cuda" if name == "cuda" else "cpu", torch.float32)
    exact = compute("torch", "cpu", torch.float64)
    return max(float((one - other).abs().max()) for one, other in zip(results, exact, strict=True))


def _missing() -> Facts:
    """Yield what is missing, and how to get it."""
    from mask2former.ops import backends

    absent = [name for name, fact in _packages() if fact == "MISSING"]
    if absent:
        yield "packages", f"pip install {' '.join(absent)}"
    if backends.BACKENDS["cpu"].why_unavailable():
        yield "compiled operator for the CPU", REBUILD
    import torch

    if _driver() and not torch.cuda.is_available():
        yield "torch for the GPU", CUDA_TORCH
    elif torch.cuda.is_available() and backends.BACKENDS["cuda"].why_unavailable():
        yield "compiled operator for the GPU", CUDA_PARTS


if __name__ == "__main__":
    sys.exit(run_alias("python -m mask2former.tools.doctor", "doctor", main))
