"""Choice of an operator's backend: the fastest that works for a device, or the one that the user asks for.

`MASK2FORMER_OPS=cuda|cpu|torch` asks for one. It is read once, and the choice is logged once per device.
"""

import functools
import logging
import os
from typing import NamedTuple, Protocol

from torch import Tensor

from mask2former.ops import cpu, reference
from mask2former.ops.cuda import backend as cuda
from mask2former.ops.reference import AttentionInputs

logger = logging.getLogger(__name__)

VARIABLE = "MASK2FORMER_OPS"


class Backend(Protocol):
    """The functions of a backend's module; inputs are checked and contiguous."""

    def why_unavailable(self) -> str | None:
        """Return None if the backend works on this machine, else the reason in one sentence."""

    def forward(self, inputs: AttentionInputs) -> Tensor:
        """Return the output."""

    def backward(self, grad: Tensor, inputs: AttentionInputs) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of value, points and weights."""


BACKENDS: dict[str, Backend] = {"cuda": cuda, "cpu": cpu, "torch": reference}
COMPILED = {"cuda", "cpu"}  # backends for the type of device of the same name alone


@functools.cache
def asked_for() -> str | None:
    """Return the backend that the environment asks for, or None; raise ValueError if it is unknown."""
    name = os.environ.get(VARIABLE, "").strip() or None
    if name is not None and name not in BACKENDS:
        raise ValueError(f"the environment variable {VARIABLE} is {name!r}, but must be one of {[*BACKENDS]}")
    return name


class Choice(NamedTuple):
    """A backend's name, the reason, and True if a faster backend should be available but is not."""

    name: str
    reason: str
    is_fallback: bool = False


def choose(device: str, is_double: bool = False) -> Choice:
    """Choose the backend for float tensors on this type of device, or for float64 tensors.

    Raises:
        ValueError: the environment asks for something unknown, or for a backend that cannot compute these
            tensors, or not on this machine.
    """
    asked = asked_for()
    if asked is not None:
        if asked in COMPILED and asked != device:
            reason: str | None = f"it computes {asked} tensors, and these are on {device}"
        elif asked in COMPILED and is_double:
            reason = "it computes no float64 tensors"
        else:
            reason = BACKENDS[asked].why_unavailable()
        if reason:
            raise ValueError(f"{VARIABLE}={asked} cannot be followed: {reason}")
        return Choice(asked, f"{VARIABLE} asks for it")
    if is_double:
        return Choice("torch", "the only one for float64")
    if device not in COMPILED:
        return Choice("torch", f"none is compiled for {device}")
    reason = BACKENDS[device].why_unavailable()
    if reason:
        return Choice("torch", f"the much faster {device!r} is not available: {reason}", is_fallback=True)
    return Choice(device, "the fastest")


@functools.cache
def backend_for(device: str, is_double: bool = False) -> Backend:
    """Return the backend that `choose` names, and log it at the first call; raises as `choose` does."""
    choice = choose(device, is_double)
    logger.log(
        logging.WARNING if choice.is_fallback else logging.INFO,
        "deformable attention of %s tensors on %s: backend %r (%s)",
        "float64" if is_double else "float", device, choice.name, choice.reason,
    )  # fmt: skip
    return BACKENDS[choice.name]
