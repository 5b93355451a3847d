"""The doctor as a command, and on machines that lack something."""

import os
import re
import subprocess
import sys

import numpy
import pytest
import torch

import mask2former
from mask2former.engine.setup.cores import affinity
from mask2former.ops import backends, reference
from mask2former.tools import doctor


def run(*arguments, before="", **environment):
    """Run the doctor in a new process, after `before`; return the facts of each section."""
    program = f"import sys\n{before}\nfrom mask2former.tools.doctor import main\nmain()"
    command = [sys.executable, *(arguments or ("-c", program))]
    merged = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    finished = subprocess.run(command, env=merged, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    sections = {}
    for part in re.split(r"^(?=\S)", finished.stdout, flags=re.MULTILINE)[1:]:
        title, *lines = part.splitlines()
        sections[title] = dict(line.strip().partition(": ")[::2] for line in lines)
    return sections


def test_the_report_has_all_sections():
    environment = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    facts = run("-m", "mask2former.tools.doctor", **environment)
    assert list(facts) == ["versions", "packages", "processor", "GPU", "deformable attention", "missing"]
    assert facts["versions"]["mask2former"].startswith(mask2former.__version__)
    assert facts["packages"]["numpy"] == numpy.__version__
    assert facts["packages"]["torch"] == torch.__version__
    processor = facts["processor"]
    assert processor["cores"] == f"{os.cpu_count()}, {affinity()} of them for this process"
    assert 0 < float(processor["usable cores"].split(" (")[0]) <= affinity()
    assert environment.items() <= processor.items()
    assert processor["threads chosen"] == "1 (OMP_NUM_THREADS is set)"
    assert processor["waiting of threads"] == "the OpenMP library decides (OMP_WAIT_POLICY is set)"
    assert facts["deformable attention"]["backend torch"] == "works"
    assert not any("FAILS" in fact for section in facts.values() for fact in section.values())


@pytest.mark.parametrize(
    ("name", "chosen"), [("torch", r"torch \(MASK2FORMER_OPS asks for it\)"), ("fast", "FAILS with .*'fast'")]
)
def test_the_backend_is_that_of_the_environment_variable(name, chosen):
    facts = run(MASK2FORMER_OPS=name)["deformable attention"]
    assert facts["MASK2FORMER_OPS"] == name
    assert re.match(chosen, facts["chosen on cpu"])
    assert facts["backend torch"] == "works"


def test_the_rest_is_reported_without_torch():
    facts = run(before="sys.modules['torch'] = None")
    assert "Python" in facts["versions"] and "usable cores" in facts["processor"]
    assert any("FAILS with ModuleNotFoundError" in line for line in facts["deformable attention"])


def test_the_home_folder_is_abbreviated_unless_it_is_the_root():
    home = str(doctor.PACKAGE.parent)
    facts = run(HOME=home)
    assert facts["versions"]["mask2former"].endswith(f"in ~{os.sep}mask2former")
    assert home not in str(facts)
    assert run(HOME="/")["versions"]["mask2former"].endswith(f"in {doctor.PACKAGE}")


def test_a_missing_package_is_reported_with_a_remedy(monkeypatch):
    def version(name):
        if name in ("scipy", "tqdm"):
            raise doctor.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(doctor.metadata, "version", version)
    text = doctor.report()
    assert "  scipy: MISSING\n" in text and "  numpy: 1.0\n" in text
    assert "  packages: pip install scipy tqdm" in text.split("\nmissing\n")[1]


def test_a_backend_with_wrong_results_is_reported(monkeypatch):
    exact = reference.forward

    def wrong_in_float32(inputs):
        return exact(inputs) + (inputs.value.dtype == torch.float32)

    monkeypatch.setattr(reference, "forward", wrong_in_float32)
    assert "  backend torch: WRONG by 1\n" in doctor.report()


@pytest.mark.parametrize(("name", "remedy"), [("cpu", doctor.REBUILD), ("cuda", doctor.CUDA_PARTS)])
def test_a_missing_backend_has_a_remedy(monkeypatch, name, remedy):
    monkeypatch.setattr(backends.BACKENDS[name], "why_unavailable", lambda: "not built.")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: name == "cuda")
    text = doctor.report()
    assert f"  backend {name}: not available: not built.\n" in text
    assert remedy in text.split("\nmissing\n")[1]
