"""Processing of long sequences in chunks, so that intermediate results stay in the CPU's cache.

Norms, projections and activations work on each row by itself. Applied to all rows at once, every operation
writes tens of megabytes that the next one reads back; on a CPU this costs about as much as the products.

Shapes: `N` rows of a sequence: tokens or windows of tokens.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

CHUNK_BYTES = 2**22  # of a chunk's widest intermediate result: about the second-level caches of two cores


def should_chunk(x: Tensor) -> bool:
    """Return True on a CPU if no gradients need the intermediate results.

    A compiler fuses the operations itself, and would unroll the loop over chunks.
    """
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def chunk_slices(length: int, width: int) -> Iterator[slice]:
    """Return slices that cover `length` rows, each as long as the cache holds rows of `width` values."""
    size = 2 if torch.is_autocast_enabled("cpu") else 4  # bytes of a value
    step = max(CHUNK_BYTES // (width * size), 1)
    return (slice(start, start + step) for start in range(0, length, step))


def map_chunks(function: Callable[..., Tensor], width: int, out: Tensor, *rows: Tensor) -> Tensor:
    """Fill `out` (N, ...) with `function` of `rows`, each (N, ...), which must treat each row by itself.

    `width` is the number of values of the widest intermediate result of a row.
    """
    for chunk in chunk_slices(len(out), width):
        out[chunk] = function(*(x[chunk] for x in rows))
    return out
