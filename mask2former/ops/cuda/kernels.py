"""The kernels of csrc/ms_deform_attn.cu, wherever their machine code comes from.

A fatbin that nvcc made at installation is taken where it has code for the device. Else NVRTC compiles the
same text for the device and for the very sizes of the call.
"""

import logging
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from mask2former.ops.cuda import driver as cuda_driver
from mask2former.ops.cuda import nvrtc

TEXT = Path(__file__).parents[1] / "csrc" / "ms_deform_attn.cu"
FATBIN = Path(__file__).parents[1] / "_cuda.fatbin"
MOST_KEPT = 32  # points of a head whose weights the registers of a thread hold
LOG = logging.getLogger(__name__)


class Kernel(NamedTuple):
    """The arguments of the macro KERNEL in the text, in its order. A size of 0 is known only at run time."""

    direction: str  # forward, backward
    type: str  # of value: float32, float16, bfloat16
    form: str  # plain, fused; either where it is known only at run time
    heads: int
    levels: int
    points: int
    channels: int
    width: str  # vector, scalar

    @property
    def name(self) -> str:
        """Of its entry point."""
        return "_".join(map(str, self))

    @property
    def definition(self) -> str:
        """What the macro KERNELS has to be for the text to define it."""
        return f"KERNEL({','.join(map(str, self))})"

    def general(self) -> "Kernel":
        """The kernel for all sizes and forms."""
        return self._replace(form="either", heads=0, levels=0, points=0, channels=0)

    def bounded(self) -> "Kernel":
        """The same, but for numbers of points known only at run time where registers would not hold them."""
        return self if self.levels * self.points <= MOST_KEPT else self._replace(levels=0, points=0)


def why_unavailable() -> str | None:
    """Why there is no source of kernels, in a sentence; None where there is one."""
    missing = nvrtc.why_unavailable()
    if missing and not FATBIN.exists():
        return f"{FATBIN.name} was not built at installation, and {missing}"
    return None


@cache
def function_for(device: int, kernel: Kernel) -> cuda_driver.Function:
    """The kernel, or the general one in its place, ready on a device."""
    module = _fatbin(device)
    if module is not None:
        function = module.function(kernel.name) or module.function(kernel.general().name)
        if function is not None:
            return function
    kernel = kernel.bounded()
    function = cuda_driver.load_module(device, compile_for(device, kernel)).function(kernel.name)
    assert function is not None, kernel.name
    return function


def compile_for(device: int, kernel: Kernel) -> bytes:
    """One kernel compiled for one device."""
    return compile_kernel(nvrtc.target(torch.cuda.get_device_capability(device)), kernel)


def compile_kernel(architecture: str, kernel: Kernel) -> bytes:
    """One kernel for sm_90 and the like. Raises nvrtc.CompileError."""
    options = (f"--gpu-architecture={architecture}", "--std=c++17", f"-DKERNELS={kernel.definition}")
    return nvrtc.compile_text(TEXT.read_text(encoding="utf-8"), options)


@cache
def _fatbin(device: int) -> cuda_driver.Module | None:
    """The kernels made at installation, where there are any for this device."""
    if not FATBIN.exists():
        return None
    try:
        return cuda_driver.load_module(device, FATBIN.read_bytes())
    except cuda_driver.DriverError as error:
        LOG.info("%s does not serve device %d, NVRTC is used instead: %s", FATBIN, device, error)
        return None
