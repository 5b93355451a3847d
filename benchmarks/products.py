"""The floor of a computation: the products in it, and nothing else.

Every matrix product, convolution and attention that runs, forward or backward, is noted with the shapes,
strides and types of what it multiplies; replayed, they show how fast the machine could be if all else were
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
    """Counts the products of what runs in it: by operator and what is known of its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[Any, ...]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func`; note it, if it is a product."""
        if func.overloadpacket in PRODUCTS:
            options = tuple((name, _describe(value)) for name, value in (kwargs or {}).items())
            self.counts[(func, tuple(map(_describe, args)), options)] += 1
        return func(*args, **(kwargs or {}))

    def replay(self) -> Callable[[], None]:
        """A function that does the same products on drawn numbers, into memory that it holds already."""
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
    """A tensor of ones, roughly, where a tensor is described; anything else as it is."""
    if not (isinstance(described, tuple) and len(described) == 3 and isinstance(described[2], torch.dtype)):
        return described
    shape, stride, dtype = described
    return torch.empty_strided(shape, stride, dtype=dtype).uniform_(0.9, 1.1)
