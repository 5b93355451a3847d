"""Windows of a map: cutting, joining, shifting, and which tokens of a window may see each other.

Shapes: `B` images, `C` channels, `H, W` the padded sides of a map in tokens, `N` tokens of an unpadded map,
`M` windows of an image, `T` tokens of a window (its side squared).
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

REGION_PENALTY = -100.0  # on logits between tokens that only the cyclic shift made neighbors


def pad_to_multiple(x: Tensor, size: int) -> Tensor:
    """Zeros at the bottom and the right of (B, H, W, C), up to multiples of `size`."""
    below, right = -x.shape[1] % size, -x.shape[2] % size
    return F.pad(x, (0, 0, 0, right, 0, below)) if below or right else x


def split_windows(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C) -> (B*M, T, C); windows of an image and tokens of a window in reading order."""
    rows, columns = x.shape[1] // window, x.shape[2] // window
    x = x.unflatten(1, (rows, window)).unflatten(
        3, (columns, window)
    )  # (B, rows, window, columns, window, C)
    return x.transpose(2, 3).reshape(-1, window * window, x.shape[-1])


def join_windows(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of `split_windows`: (B*M, T, C) -> (B, height, width, C)."""
    rows, columns, channels = height // window, width // window, windows.shape[-1]
    x = windows.reshape(-1, rows, columns, window, window, channels)
    return x.transpose(2, 3).reshape(-1, height, width, channels)


def shift_mask(height: int, width: int, window: int, device: torch.device) -> Tensor:
    """What shifted windows add to their logits: (M, T, T), REGION_PENALTY between regions and 0 within.

    `height` and `width` are the padded map's. Rolling by half a window brings the first rows and columns
    next to the last; three bands along each axis tell which tokens were neighbors before.
    """

    def bands(size: int) -> Tensor:
        index = torch.arange(size, device=device)
        return (index >= size - window).long() + (index >= size - window // 2)

    regions = 3 * bands(height)[:, None] + bands(width)
    region = split_windows(regions[None, :, :, None], window).squeeze(-1)  # (M, T)
    return (region[:, :, None] != region[:, None, :]) * REGION_PENALTY


class WindowLayout(NamedTuple):
    """Which token is where in the windows of a map; plain windows first, those at a border after them.

    tokens: (M, T) the token at each place, any where the place is padding.
    places: (N,) the place of each token, in all windows laid end to end.
    padding: (M_border, T, 1) bool, where the last windows hold no token.
    mask: (M_border, T, T) what the last windows add to their logits.
    """

    tokens: Tensor
    places: Tensor
    padding: Tensor
    mask: Tensor


def window_layout(height: int, width: int, window: int, shift: int) -> WindowLayout:
    """The layout of a map of these unpadded sides whose windows start `shift` tokens later, on the CPU."""
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
