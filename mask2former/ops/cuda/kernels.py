"""The kernels of csrc/ms_deform_attn.cu: precompiled, or compiled at run time.

If nvcc made a fatbin at installation that has code for the device, it is used. Otherwise NVRTC compiles the
same source for the device and for the sizes of the call.
"""

import logging
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from mask2former.ops.cuda import driver, nvrtc

SOURCE = Path(__file__).parents[1] / "csrc" / "ms_deform_attn.cu"
FATBIN = Path(__file__).parents[1] / "_cuda.fatbin"
MAX_REGISTER_POINTS = 32  # points per head for which a thread's registers hold the weights
logger = logging.getLogger(__name__)


class Kernel(NamedTuple):
    """The arguments of the macro KERNEL, in its order. A size of 0 is known only at run time."""

    direction: str  # forward, backward
    type: str  # of value: float32, float16, bfloat16
    form: str  # plain, fused, or either: known only at run time
    heads: int
    levels: int
    points: int
    channels: int
    width: str  # vector, scalar

    @property
    def name(self) -> str:
        """Return the name of its entry point."""
        return "_".join(map(str, self))

    @property
    def definition(self) -> str:
        """Return the value of the macro KERNELS with which the source defines this kernel."""
        return f"KERNEL({','.join(map(str, self))})"

    def general(self) -> "Kernel":
        """Return the kernel for all sizes and forms."""
        return self._replace(form="either", heads=0, levels=0, points=0, channels=0)

    def bounded(self) -> "Kernel":
        """Return the same kernel, with run-time numbers of points if there are too many for registers."""
        return self if self.levels * self.points <= MAX_REGISTER_POINTS else self._replace(levels=0, points=0)


def why_unavailable() -> str | None:
    """Return None if kernels can be loaded or compiled, else the reason in one sentence."""
    missing = nvrtc.why_unavailable()
    if missing and not FATBIN.exists():
        return f"{FATBIN.name} was not built at installation, and {missing}"
    return None


@cache
def function_for(device: int, kernel: Kernel) -> driver.Function:
    """Return the kernel, or else the general one, loaded on a device."""
    module = _fatbin(device)
    if module is not None:
        function = module.function(kernel.name) or module.function(kernel.general().name)
        if function is not None:
            return function
    kernel = kernel.bounded()
    image = compile_kernel(nvrtc.target(torch.cuda.get_device_capability(device)), kernel)
    function = driver.load_module(device, image).function(kernel.name)
    assert function is not None, kernel.name
    return function


def compile_kernel(architecture: str, kernel: Kernel) -> bytes:
    """Compile one kernel for an architecture like sm_90; raises nvrtc.CompileError."""
    options = (f"--gpu-architecture={architecture}", "--std=c++17", f"-DKERNELS={kernel.definition}")
    return nvrtc.compile_source(SOURCE.read_text(encoding="utf-8"), options)


@cache
def _fatbin(device: int) -> driver.Module | None:
    """Load the kernels made at installation, if there are any for this device."""
    if not FATBIN.exists():
        return None
    try:
        return driver.load_module(device, FATBIN.read_bytes())
    except driver.DriverError as error:
        logger.info("%s does not work on device %d, using NVRTC instead: %s", FATBIN, device, error)
        return None
