"""Sine position encoding of the cells of a map, normalized so that every map spans one period.

Rows and columns are encoded separately and then expanded over the map: sines of H + W coordinates instead of
H * W are cheap enough to need no cache.

Shapes: `C` channels, `T` frames, `H, W` the sides of a map.
"""

import math

import torch
from torch import Tensor

TEMPERATURE = 10000.0


def sine_position(shape: tuple[int, int], channels: int, device: torch.device | None = None) -> Tensor:
    """Encode a map's cells, row by row: (H * W, C) float32, half of the channels for y, then half for x.

    Raises:
        ValueError: `channels` is not a multiple of 4 (a sine and a cosine for each axis).
    """
    if channels % 4:
        raise ValueError(f"a sine position encoding needs a multiple of 4 channels, not {channels}")
    rows, columns = (_encode_axis(size, channels // 2, device) for size in shape)
    height, width = shape
    spread = rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)
    return torch.cat(spread, dim=-1).flatten(0, 1)


def frame_position(num_frames: int, channels: int, device: torch.device | None = None) -> Tensor:
    """Encode the frames of a clip: (T, C) float32, to be added to the encoding of their cells."""
    return _encode_axis(num_frames, channels, device)


def _encode_axis(size: int, channels: int, device: torch.device | None) -> Tensor:
    """Return interleaved sines and cosines (size, channels) of the coordinates along one axis."""
    coordinates = torch.arange(1, size + 1, dtype=torch.float32, device=device) * (
        2 * math.pi / (size + 1e-6)
    )
    exponents = torch.arange(0, channels, 2, dtype=torch.float32, device=device) / channels
    angles = coordinates[:, None] * TEMPERATURE**-exponents
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)
