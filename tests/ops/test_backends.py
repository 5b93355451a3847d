"""The choice of a backend, its log messages and errors."""

import logging
import subprocess
import sys

import explicit_attention
import pytest
import torch
from explicit_attention import SHAPES, convert, draw, forget_choices

from mask2former.ops import backends


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.delenv(backends.VARIABLE, raising=False)
    forget_choices()
    yield
    forget_choices()


@pytest.fixture
def works(monkeypatch):
    """Return a function that lets a compiled backend work (None) or gives the reason why not."""

    def pretend(name, reason):
        monkeypatch.setattr(backends.BACKENDS[name], "why_unavailable", lambda: reason)

    return pretend


def attend(dtype=torch.float32):
    value, *others = convert(draw("plain"), dtype)
    return explicit_attention.attend(value, SHAPES, *others)


def test_the_fastest_working_backend_is_chosen(works):
    works("cpu", None)
    works("cuda", None)
    assert backends.choose("cpu") == ("cpu", "the fastest", False)
    assert backends.choose("cuda") == ("cuda", "the fastest", False)
    assert backends.choose("mps") == ("torch", "none is compiled for mps", False)
    assert backends.choose("cpu", is_double=True).name == "torch"


@pytest.mark.parametrize(
    ("asked", "reason", "level", "message"),
    [
        ("", "the reason.", logging.WARNING, "the reason."),
        ("torch", None, logging.INFO, "(MASK2FORMER_OPS asks for it)"),
    ],
)
def test_a_missing_backend_is_warned_about_once_unless_torch_is_requested(
    works, monkeypatch, caplog, asked, reason, level, message
):
    works("cpu", reason)
    monkeypatch.setenv(backends.VARIABLE, asked)
    with caplog.at_level(logging.INFO, "mask2former.ops"):
        attend()
        attend()
    (record,) = caplog.records
    assert record.levelno == level
    assert "on cpu: backend 'torch'" in record.message and message in record.message


def test_the_choice_is_logged_once_per_value_type(caplog):
    with caplog.at_level(logging.INFO, "mask2former.ops"):
        for dtype in (torch.float64, torch.float64, torch.float32, torch.bfloat16):
            attend(dtype)
    assert len(caplog.records) == 2
    assert "float64 tensors on cpu: backend 'torch' (the only one for float64)" in caplog.messages[0]


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_a_requested_but_unavailable_backend_raises(works, monkeypatch, name):
    works(name, "no such library.")
    monkeypatch.setenv(backends.VARIABLE, name)
    with pytest.raises(ValueError, match=f"^MASK2FORMER_OPS={name} cannot be followed: no such library."):
        backends.backend_for(name)


@pytest.mark.parametrize(
    ("name", "dtype", "reason"),
    [
        ("cuda", torch.float32, "computes cuda tensors.*these are on cpu"),
        ("cpu", torch.float64, "computes no float64"),
    ],
)
def test_a_requested_backend_refuses_tensors_of_another_device_and_float64(
    works, monkeypatch, name, dtype, reason
):
    works(name, None)
    monkeypatch.setenv(backends.VARIABLE, name)
    with pytest.raises(ValueError, match=f"MASK2FORMER_OPS={name} .*{reason}"):
        attend(dtype)


def test_an_error_while_computing_is_not_hidden(works, monkeypatch):
    """Out of memory, say: another backend would only hide it."""

    def fail(*args):
        raise torch.OutOfMemoryError("no room")

    works("cpu", None)
    monkeypatch.setattr(backends.BACKENDS["cpu"], "forward", fail)
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        attend()


PROGRAM = """
import torch
from mask2former.ops import ms_deform_attn
print("imported")
ms_deform_attn(torch.zeros(1, 1, 1, 1), ((1, 1),), torch.zeros(1, 1, 1, 1, 1, 2), torch.zeros(1, 1, 1, 1, 1))
print("computed")
"""


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ("torch", None),
        ("", None),
        ("CUDA", "ValueError: the environment variable MASK2FORMER_OPS is 'CUDA', but must be one of "),
        ("cuda", "ValueError: MASK2FORMER_OPS=cuda cannot be followed: "),
    ],
)
def test_a_process_of_its_own(asked, error):
    """The variable is read at the first use: importing never fails for it."""
    environment = {"PYTHONPATH": ":".join(sys.path), backends.VARIABLE: asked}
    run = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert run.stdout.split() == (["imported"] if error else ["imported", "computed"])
    assert (run.returncode != 0) == bool(error)
    assert error is None or error in run.stderr
