"""Maps of clips, and the same maps as those of so many images.

Shapes: `B` clips, `T` frames of a clip, `C` channels, `h, w` the sides of a map.
"""

from torch import Tensor


def split_clips(maps: Tensor, num_clips: int) -> Tensor:
    """Return maps of frames (B T, C, h, w), clip by clip, as those of clips (B, C, T, h, w): a view."""
    return maps.unflatten(0, (num_clips, -1)).transpose(1, 2)


def merge_clips(maps: Tensor) -> Tensor:
    """Return maps of clips (B, C, T, h, w) as those of frames (B T, C, h, w), a view of `split_clips`'."""
    return maps.transpose(1, 2).flatten(0, 1)
