"""Windows of a map: splitting, joining, shifting, and the attention mask of shifted windows.

Shapes: `B` images, `C` channels, `H, W` the padded sides of a map in tokens, `N` tokens of an unpadded map,
`M` windows of an image, `T` tokens of a window (its side squared).
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

REGION_PENALTY = -100.0  # added to logits between tokens that are neighbors only by the cyclic shift


def pad_to_multiple(x: Tensor, size: int) -> Tensor:
    """Pad (B, H, W, C) with zeros at the bottom and right to multiples of `size`."""
    below, right = (next_multiple(side, size) - side for side in (x.shape[1], x.shape[2]))
    # An exported graph pads images of all sizes, also where the example needs no padding.
    is_padded = torch.compiler.is_exporting() or below or right
    return F.pad(x, (0, 0, 0, right, 0, below)) if is_padded else x


def next_multiple(side: int, size: int) -> int:
    """Return the smallest multiple of `size` from `side` on, in terms that torch.export can simplify."""
    return (side + size - 1) // size * size


def split_windows(x: Tensor, window: int) -> Tensor:
    """Split (B, H, W, C) into (B*M, T, C): windows of an image and tokens of a window row by row."""
    rows, columns = x.shape[1] // window, x.shape[2] // window
    x = x.unflatten(1, (rows, window)).unflatten(3, (columns, window))
    return x.transpose(2, 3).reshape(-1, window * window, x.shape[-1])


def join_windows(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """Invert `split_windows`: (B*M, T, C) -> (B, height, width, C)."""
    rows, columns, channels = height // window, width // window, windows.shape[-1]
    x = windows.reshape(-1, rows, columns, window, window, channels)
    return x.transpose(2, 3).reshape(-1, height, width, channels)


def shift_mask(height: int, width: int, window: int, device: torch.device) -> Tensor:
    """Return the mask (M, T, T) to add to the logits: REGION_PENALTY between regions and 0 within.

    `height` and `width` are the padded map's. Rolling by half a window brings the first rows and columns
    next to the last; three bands along each axis separate the regions that were not adjacent before.
    """

    def bands(size: int) -> Tensor:
        index = torch.arange(size, device=device)
        return (index >= size - window).long() + (index >= size - window // 2)

    regions = 3 * bands(height)[:, None] + bands(width)
    region = split_windows(regions[None, :, :, None], window).squeeze(-1)  # (M, T)
    return (region[:, :, None] != region[:, None, :]) * REGION_PENALTY


class WindowLayout(NamedTuple):
    """The positions of tokens in the windows of a map; windows with padding or a mask come last.

    tokens: (M, T) the token at each position, arbitrary at padding.
    places: (N,) the position of each token in the concatenated windows.
    padding: (M_border, T, 1) bool, True where the last windows hold no token.
    mask: (M_border, T, T) the mask of the last windows' logits.
    """

    tokens: Tensor
    places: Tensor
    padding: Tensor
    mask: Tensor


def window_layout(height: int, width: int, window: int, shift: int) -> WindowLayout:
    """Return the layout of an unpadded map whose windows start `shift` tokens later, on the CPU."""
    count = height * width
    numbers = F.pad(
        torch.arange(count).view(height, width), (0, -width % window, 0, -height % window), value=count
    )
    shifted = numbers.roll((-shift, -shift), (0, 1))
    tokens = split_windows(shifted[None, :, :, None], window).squeeze(-1)
    padding = tokens == count
    mask = shift_mask(shifted.shape[0], shifted.shape[1], window, tokens.device)
    if not shift:
        mask = torch.zeros_like(mask)
    border = padding.any(1) | mask.flatten(1).any(1)
    order = torch.argsort(border, stable=True)
    tokens = tokens[order]
    places = torch.empty(count + 1, dtype=torch.long)
    places[tokens.flatten()] = torch.arange(tokens.numel())
    return WindowLayout(tokens.clamp(max=count - 1), places[:-1], padding[border, :, None], mask[border])
