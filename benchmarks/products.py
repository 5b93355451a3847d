"""Lower bound of a computation's time: its matrix products and nothing else.

Every matrix product, convolution and attention that runs, forward or backward, is recorded with the shapes,
strides and types of its inputs; replayed, they show how fast the machine could be if everything else were
free.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
PRODUCTS = {
    *(aten.mm, aten.addmm, aten.bmm, aten.baddbmm),
    *(aten.convolution, aten.convolution_backward),
    aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_flash_attention_for_cpu_backward,
}


class Products(TorchDispatchMode):
    """Counter of the products that run inside, by operator and description of its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[Any, ...]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func`, and count it if it is a product."""
        if func.overloadpacket in PRODUCTS:
            options = tuple((name, _describe(value)) for name, value in (kwargs or {}).items())
            self.counts[(func, tuple(map(_describe, args)), options)] += 1
        return func(*args, **(kwargs or {}))

    def replay(self) -> Callable[[], None]:
        """Return a function that repeats the products on random numbers, into preallocated memory."""
        calls = [(_call(*key), count) for key, count in self.counts.items()]

        def run() -> None:
            for call, count in calls:
                for _ in range(count):
                    call()

        return run


def _describe(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.shape, argument.stride(), argument.dtype
    return tuple(argument) if isinstance(argument, list) else argument


def _call(func: Any, described: tuple[Any, ...], options: tuple[tuple[str, Any], ...]) -> Callable[[], Any]:
    args = [_draw(item) for item in described]
    keywords = {name: _draw(item) for name, item in options}
    if func.overloadpacket is aten.addmm:  # the bias is no product
        func, args = aten.mm.default, args[1:]
    if func.overloadpacket in (aten.mm, aten.bmm):
        out = func(*args)
        return lambda: torch.matmul(*args, out=out)
    return lambda: func(*args, **keywords)


def _draw(described: Any) -> Any:
    """Return a tensor near one for the description of a tensor; return anything else unchanged."""
    if not (isinstance(described, tuple) and len(described) == 3 and isinstance(described[2], torch.dtype)):
        return described
    shape, stride, dtype = described
    return torch.empty_strided(shape, stride, dtype=dtype).uniform_(0.9, 1.1)
