"""Losses at points: drawing them, and reading maps and masks there without resizing either.

A point is (x, y) in [0, 1], relative to the padded image; reading is bilinear between pixel centres
(`align_corners=False`) and zero outside, so a mask of ones reads 0.25 at its very corner.

Letters: `B` images or maps, `C` channels, `N` masks, `T` maps that draw their own points, `S` sets of points,
`P` points of a set, `H, W` the padded image's sides, `h, w` those of a map or of an unpadded mask.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

MASK_PIXELS_AT_ONCE = 2**23
"""Boolean masks become floats a few at a time; this many pixels are 32 MiB."""


def random_points(*shape: int, generator: torch.Generator) -> Tensor:
    """Uniform points (*shape, 2), on the generator's device."""
    return torch.rand(*shape, 2, generator=generator, device=generator.device)


def sample_maps(maps: Tensor, points: Tensor) -> Tensor:
    """Values (B, C, S, P) of maps (B, C, h, w), which cover the padded image, at points (B, S, P, 2)."""
    return F.grid_sample(maps, 2 * points - 1, align_corners=False)


def sample_masks(masks: Tensor, points: Tensor, padded_size: tuple[int, int]) -> Tensor:
    """Read boolean masks at points; what lies outside a mask, padding included, is zero.

    Args:
        masks: (N, h, w) bool, the top left part of the padded image.
        points: (N, S, P, 2).
        padded_size: (H, W) in pixels.

    Returns:
        (N, S, P) float32 in [0, 1].
    """
    height, width = masks.shape[-2:]
    grid = points * points.new_tensor([2 * padded_size[1] / width, 2 * padded_size[0] / height]) - 1
    step = max(1, MASK_PIXELS_AT_ONCE // (height * width))
    values = [
        F.grid_sample(some[:, None].to(grid.dtype), where, align_corners=False)[:, 0]
        for some, where in zip(masks.split(step), grid.split(step), strict=True)
    ]
    return torch.cat(values)


def uncertain_points(
    logits: Tensor,
    num_points: int,
    *,
    oversample_ratio: float,
    importance_sample_ratio: float,
    generator: torch.Generator,
) -> Tensor:
    """Points where masks are undecided, and some anywhere (paper §3.3, after PointRend §3.1).

    Of `num_points * oversample_ratio` uniform points, those with the smallest |logit| become the share
    `importance_sample_ratio` of the result. The logit is read before its size is taken: between -1 and +1
    lies an undecided point, though both neighbours are decided.

    Args:
        logits: (T, h, w) mask logits, which cover the padded image.

    Returns:
        (T, num_points, 2).
    """
    num_masks = len(logits)
    important = int(importance_sample_ratio * num_points)
    candidates = random_points(num_masks, int(num_points * oversample_ratio), generator=generator)
    anywhere = random_points(num_masks, num_points - important, generator=generator)
    uncertainty = sample_maps(logits[:, None], candidates[:, None])[:, 0, 0].abs()
    chosen = uncertainty.topk(important, largest=False, sorted=False).indices
    return torch.cat([candidates.gather(1, chosen[..., None].expand(-1, -1, 2)), anywhere], dim=1)
