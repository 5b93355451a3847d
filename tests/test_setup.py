"""Real builds in a copy of the clone: contents of the wheel and the sdist, with and without a compiler."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CLONED = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "NOTICE")
FOLDERS = ("mask2former", "configs")
HOOK = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
C_SOURCES = ("ms_deform_attn.cpp", "points.h", "sixteen_bit.h", "ms_deform_attn.cu")
COMPILERS = ("CC", "CXX", "LDSHARED")

pytest.importorskip("setuptools.command.bdist_wheel", reason="setuptools before 70.1")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Copy the clone as it is in git, without files built in place."""
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in CLONED:
        shutil.copy(ROOT / name, folder)
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("*.so", "*.fatbin", "__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    return folder


def build(clone: Path, what: str, *, compilers: bool) -> tuple[Path, str]:
    """Return the wheel or sdist that setuptools' hook builds, and what it printed."""
    environment = {key: value for key, value in os.environ.items() if key not in COMPILERS}
    environment["CUDA_HOME"] = "/no/cuda"  # the .cu is compiled by tests/ops, and by .ci/run
    if not compilers:
        environment |= {"PATH": "", "CC": "/no/compiler", "CXX": "/no/compiler"}
    command = [sys.executable, "-c", HOOK, f"build_{what}", str(clone / "dist")]
    run = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
    printed = run.stdout + run.stderr
    assert run.returncode == 0, printed
    return clone / "dist" / run.stdout.splitlines()[-1], printed


def files(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no compiler")
def test_a_compiled_wheel_holds_the_operator(clone: Path) -> None:
    wheel, _ = build(clone, "wheel", compilers=True)
    assert wheel.name.split("-")[2:4] == ["py3", "none"] and not wheel.name.endswith("-any.whl")
    libraries = {name for name in files(wheel) if name.endswith((".so", ".fatbin"))}
    assert libraries == {"mask2former/ops/_cpu.so"}
    zipfile.ZipFile(wheel).extract("mask2former/ops/_cpu.so", clone)
    needed = b"libstdc++", b"libgomp", b"libtorch", b"libpython"
    content = (clone / "mask2former/ops/_cpu.so").read_bytes()
    assert [name for name in needed if name in content] == []


def test_without_a_compiler_everything_else_is_installed(clone: Path, tmp_path: Path) -> None:
    """Files built earlier are not shipped either."""
    platform = f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    for folder in (f"build/{platform}", "."):
        stale = clone / folder / "mask2former/ops/_cpu.so"
        stale.parent.mkdir(parents=True, exist_ok=True)
        stale.write_bytes(b"stale")
    wheel, printed = build(clone, "wheel", compilers=False)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "_cpu.so is left out" in printed and "_cuda.fatbin is left out" in printed
    assert not {name for name in files(wheel) if name.endswith((".so", ".fatbin"))}
    assert {f"mask2former/ops/csrc/{name}" for name in C_SOURCES} <= files(wheel)
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    program = "from mask2former.ops import cpu; print(cpu.__file__, cpu.why_unavailable())"
    printed = subprocess.check_output([sys.executable, "-c", program], cwd=tmp_path / "installed", text=True)
    assert printed.startswith(str(tmp_path / "installed")) and "was not built" in printed


def test_the_sdist_is_enough_to_build_from(clone: Path) -> None:
    sdist, _ = build(clone, "sdist", compilers=False)
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"mask2former/ops/csrc/{name}" for name in C_SOURCES} <= names
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml")} <= names
    assert "mask2former/weights/model_zoo.json" in names
    assert {f"mask2former/tools/paper/{name}" for name in ("tables.yaml", "costs.json")} <= names
    assert not {name for name in names if name.endswith((".so", ".fatbin"))}
