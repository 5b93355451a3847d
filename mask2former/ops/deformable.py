"""Multi-scale deformable attention: the weighted sum of values sampled at a few points of several maps.

The pixel decoder (section 3.2.1 of the paper) spends most of its time here. Everything above calls
`ms_deform_attn` and knows nothing of how it is computed.

Letters: `B` images, `S` cells of all maps laid end to end, `Lq` queries, `L` levels, `P` points, `D` channels
of a head, `H_l, W_l` the sides of map l.
"""

from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: tuple[tuple[int, int], ...],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Attend to bilinearly sampled values; outside of a map they are zero.

    Args:
        value: (B, S, heads, D), the maps in the order of `spatial_shapes`, each row by row.
        spatial_shapes: (H_l, W_l) of each level, Python numbers, so that no device has to be asked for them.
        sampling_locations: (B, Lq, heads, L, P, 2), x then y, where 0 and 1 are the outer edges of a map. Of
            value's type, which should be float32 or wider: near 1, half precision is 0.06 cells coarse on a
            map 128 wide.
        attention_weights: (B, Lq, heads, L, P) probabilities.

    Returns:
        (B, Lq, heads * D), the heads one after the other.
    """
    areas = [height * width for height, width in spatial_shapes]
    assert sum(areas) == value.shape[1], f"{value.shape[1]} cells do not fill maps of {spatial_shapes}"
    levels = zip(
        value.split(areas, dim=1),
        spatial_shapes,
        sampling_locations.unbind(3),
        attention_weights.unbind(3),
        strict=True,
    )
    # Summing level by level never holds the samples of all levels at once.
    return reduce(torch.add, (_attend_to_level(*level) for level in levels))


def _attend_to_level(value: Tensor, shape: tuple[int, int], locations: Tensor, weights: Tensor) -> Tensor:
    """One level's share (B, Lq, heads * D): value (B, H W, heads, D), locations (B, Lq, heads, P, 2)."""
    batch, _, heads, channels = value.shape
    maps = value.permute(0, 2, 3, 1).reshape(batch * heads, channels, *shape)
    grid = (2 * locations - 1).transpose(1, 2).flatten(0, 1)
    samples = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    head_weights = weights.transpose(1, 2).flatten(0, 1).unsqueeze(1)
    attended = (samples * head_weights).sum(-1)  # (B * heads, D, Lq)
    return attended.view(batch, heads * channels, locations.shape[1]).transpose(1, 2)
