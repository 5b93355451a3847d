"""Working through long sequences piece by piece, so that what lies between two steps stays in the cache.

Tokens are normed, projected and rectified each for itself. Done for all at once, every step writes tens of
megabytes of fresh memory that the next one reads back; on a CPU that costs about as much as the products.

Shapes: `N` rows of a sequence, be they tokens or windows of tokens.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

CACHED = (
    2**22
)  # bytes that a piece may hold at its widest: about what the second-level caches of two cores hold


def pieces_pay(x: Tensor) -> bool:
    """Whether to work on `x` in pieces: on a CPU, if no gradients need what lies between.

    Not where a compiler looks on: it merges steps itself, and would write down each piece.
    """
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def pieces(length: int, width: int) -> Iterator[slice]:
    """Slices that cover `length` rows; in each, rows that take `width` values stay within the cache."""
    size = 2 if torch.is_autocast_enabled("cpu") else 4  # bytes of a value
    step = max(CACHED // (width * size), 1)
    return (slice(start, start + step) for start in range(0, length, step))


def in_pieces(step: Callable[..., Tensor], width: int, out: Tensor, *rows: Tensor) -> Tensor:
    """Fill `out` (N, ...) with `step` of `rows`, each (N, ...); no row of its result may depend on another.

    `width` is how many values `step` makes of a row at its widest.
    """
    for piece in pieces(len(out), width):
        out[piece] = step(*(x[piece] for x in rows))
    return out
