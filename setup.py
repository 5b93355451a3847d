"""Build steps that pyproject.toml cannot describe: YAML files in the wheel, and compiled operators.

The folder configs/ is installed as the package mask2former.configs. The operators' libraries have a plain C
interface: building them does not need torch, and one wheel serves every version of Python and torch. Neither
library is required: without its compiler it is left out with a warning, and the rest is installed.
"""

import os
import shutil
import subprocess
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

CONFIG_PACKAGE = "mask2former.configs"
SOURCES = "mask2former/ops/csrc"
# Not -ffast-math: NaN would pass the bounds checks, and subnormals would be flushed in the whole process.
OPTIONS = [
    *("-std=c++17", "-O3", "-g0", "-fno-math-errno", "-fno-trapping-math"),
    *("-fvisibility=hidden", "-fno-exceptions", "-fno-rtti"),
]
# For the compiler, not for the linker: the calls bind to the OpenMP library that torch has loaded.
OPENMP = ["-fopenmp"]


def config_files() -> list[str]:
    """Return the paths of all YAML files below configs/, relative to it."""
    root = Path(__file__).parent / "configs"
    return sorted(str(path.relative_to(root)) for path in root.rglob("*.yaml"))


class BuildLibraries(build_ext):
    """Build of the libraries that this machine has compilers for: plain files, not Python modules."""

    def finalize_options(self) -> None:
        """Force a rebuild: an earlier build may stem from other sources."""
        super().finalize_options()
        self.force = True
        self.built: list[Path] = []

    def get_ext_filename(self, fullname: str) -> str:
        """Return the file name, without Python's version."""
        return str(Path(*fullname.split("."))) + (".fatbin" if fullname.endswith("_cuda") else ".so")

    def build_extension(self, ext: Extension) -> None:
        """Build a library, or warn that it is left out."""
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # from an earlier build
        try:
            build = self._build_cuda if ext.name.endswith("_cuda") else self._build_cpu
            build(ext, target)
            self.built.append(target)
        except (CompileError, LinkError, OSError, subprocess.CalledProcessError) as error:
            self.warn(f"{target.name} is left out: {error}")

    def copy_extensions_to_source(self) -> None:
        """Copy the libraries for an editable install, and remove old ones that could not be rebuilt."""
        for ext in self.extensions:
            Path(self.get_ext_filename(ext.name)).unlink(missing_ok=True)
        super().copy_extensions_to_source()

    def _build_cpu(self, ext: Extension, target: Path) -> None:
        try:
            objects = self._compile(ext, [*OPTIONS, *OPENMP])
        except CompileError:
            self.warn("no OpenMP with this compiler: the operator will run on one thread")
            objects = self._compile(ext, OPTIONS)
        self.compiler.link_shared_object(objects, str(target))

    def _compile(self, ext: Extension, options: list[str]) -> list[str]:
        return self.compiler.compile(ext.sources, self.build_temp, extra_postargs=options)

    def _build_cuda(self, ext: Extension, target: Path) -> None:
        home = os.environ.get("CUDA_HOME")
        nvcc = shutil.which("nvcc", path=Path(home, "bin")) if home else shutil.which("nvcc")
        if nvcc is None:
            raise OSError("nvcc not found; on a GPU, NVRTC compiles the same source at first use")
        options = ["-fatbin", "-O3", "-arch=all-major", "-o", str(target)]
        subprocess.run([nvcc, *options, *ext.sources], check=True)


class TaggedWheel(bdist_wheel):
    """A wheel for every version of Python, and for every platform if nothing was compiled."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return py3-none and the platform, or "any"."""
        platform = super().get_tag()[2]
        self.root_is_pure = not self.get_finalized_command("build_ext").built
        return "py3", "none", "any" if self.root_is_pure else platform


setup(
    packages=[*find_packages(include=["mask2former", "mask2former.*"]), CONFIG_PACKAGE],
    package_dir={CONFIG_PACKAGE: "configs"},
    package_data={
        CONFIG_PACKAGE: config_files(),
        "mask2former.weights": ["model_zoo.json"],
        "mask2former.data.datasets": ["metadata/*"],
        "mask2former.tools.paper": ["*.json", "*.yaml"],
        "mask2former.utils": ["cityscapes_labels.json", "LICENSE.cityscapesScripts.txt"],
        "mask2former.ops": ["csrc/*"],  # NVRTC reads the .cu
        "mask2former.web": ["viewer.*"],
    },
    ext_modules=[
        Extension(
            "mask2former.ops._cpu",
            [f"{SOURCES}/ms_deform_attn.cpp"],
            depends=[f"{SOURCES}/points.h", f"{SOURCES}/sixteen_bit.h"],
            optional=True,
        ),
        Extension("mask2former.ops._cuda", [f"{SOURCES}/ms_deform_attn.cu"], optional=True),
    ],
    cmdclass={"build_ext": BuildLibraries, "bdist_wheel": TaggedWheel},
)
