"""Random points for the loss, and sampling of maps and masks there without resizing either.

A point is (x, y) in [0, 1], relative to the padded image; sampling is bilinear between pixel centers
(`align_corners=False`) and zero outside, so a mask of ones has the value 0.25 at its very corner.

Shapes: `B` images or maps, `C` channels, `N` masks, `T` maps that draw their own points, `S` sets of points,
`P` points of a set, `H, W` the padded image's sides, `h, w` those of a map or of an unpadded mask.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

SURROUNDINGS = 0.5  # of an object's side, around its box
MASK_PIXELS_AT_ONCE = 2**23  # of boolean masks converted to float32 at a time: 32 MiB
CANDIDATES_AT_ONCE = 2**20  # candidate points drawn at a time: 8 MiB, and as much for their grid


def random_points(*shape: int, generator: torch.Generator) -> Tensor:
    """Draw uniform points (*shape, 2) on the generator's device."""
    return torch.rand(*shape, 2, generator=generator, device=generator.device)


def sample_maps(maps: Tensor, points: Tensor) -> Tensor:
    """Sample maps (B, C, h, w) of the padded image at points (B, S, P, 2): (B, C, S, P)."""
    return F.grid_sample(maps, (2 * points).sub_(1), align_corners=False)


def sample_masks(masks: Tensor, points: Tensor, padded_size: tuple[int, int]) -> Tensor:
    """Sample boolean masks (N, h, w), each at its own points (N, S, P, 2): (N, S, P) float32 in [0, 1].

    Masks cover the top left part of the padded image, of `padded_size` (H, W); outside, values are zero.
    """
    step = _masks_at_once(masks)
    values = [
        F.grid_sample(
            some[:, None].to(own.dtype), _mask_grid(masks, own, padded_size), align_corners=False
        ).squeeze(1)
        for some, own in zip(masks.split(step), points.split(step), strict=True)
    ]
    return torch.cat(values)


def sample_masks_at_shared_points(masks: Tensor, points: Tensor, padded_size: tuple[int, int]) -> Tensor:
    """Sample all masks at the same points (S, P, 2): (N, S, P), else as `sample_masks`."""
    if not len(masks):
        return points.new_zeros(0, *points.shape[:2])
    grid = _mask_grid(masks, points, padded_size)[:, None]
    values = [
        # Sets are the batch, without a copy, because a CPU distributes images of a batch over its threads.
        F.grid_sample(some.to(grid.dtype).expand(len(grid), -1, -1, -1), grid, align_corners=False)
        for some in masks.split(_masks_at_once(masks))
    ]
    return torch.cat(values, dim=1).squeeze(2).transpose(0, 1)


def _masks_at_once(masks: Tensor) -> int:
    return max(1, MASK_PIXELS_AT_ONCE // (masks.shape[1] * masks.shape[2]))


def _mask_grid(masks: Tensor, points: Tensor, padded_size: tuple[int, int]) -> Tensor:
    """Convert points to the coordinates of grid_sample: -1 and 1 are the outer edges of a mask."""
    height, width = masks.shape[-2:]
    return (points * points.new_tensor([2 * padded_size[1] / width, 2 * padded_size[0] / height])).sub_(1)


def uncertain_points(
    logits: Tensor,
    num_points: int,
    *,
    oversample_ratio: float,
    importance_sample_ratio: float,
    generator: torch.Generator,
    boxes: Tensor | None = None,
    object_ratio: float = 0.0,
) -> Tensor:
    """Draw points (T, num_points, 2) where masks are uncertain, and some anywhere (paper §3.3).

    The mask logits (T, h, w) cover the padded image. As in PointRend (§3.1), of `num_points *
    oversample_ratio` uniform points those with the smallest |logit| become the share
    `importance_sample_ratio` of the result. The absolute value is taken after the interpolation: between
    cells of -1 and +1 there is an uncertain point.

    With `boxes` (T, 4), see `object_boxes`, the share `object_ratio` of the candidates, and of the points
    drawn anywhere, is drawn in the map's box.
    """
    important = int(importance_sample_ratio * num_points)
    count = int(num_points * oversample_ratio)
    step = max(1, CANDIDATES_AT_ONCE // count)
    points = logits.new_empty(len(logits), num_points, 2, dtype=torch.float32)
    for start in range(0, len(logits), step):
        some, own = logits[start : start + step], points[start : start + step]
        candidates = random_points(len(some), count, generator=generator)
        if boxes is not None:
            move_into(candidates, boxes[start : start + step, None], object_ratio)
        uncertainty = sample_maps(some[:, None], candidates[:, None])[:, 0, 0].abs_()
        chosen = uncertainty.topk(important, largest=False, sorted=False).indices
        own[:, :important] = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
    anywhere = random_points(len(logits), num_points - important, generator=generator)
    if boxes is not None:
        move_into(anywhere, boxes[:, None], object_ratio)
    points[:, important:] = anywhere
    return points


def object_boxes(masks: Tensor, padded_size: tuple[int, int]) -> Tensor:
    """Return the surroundings (N, 4) of boolean masks (N, h, w): left, top, right, bottom as points' x and y.

    It is a mask's box, SURROUNDINGS of its sides larger in each direction; for an empty mask, the image.
    Masks of clips (N, T, h, w) have one box for all T frames.
    """
    height, width = padded_size
    sides = []
    pixels = masks.view(torch.uint8)  # a CPU reduces bytes four times as fast as booleans
    frames = tuple(range(1, masks.ndim - 2))
    columns, rows = pixels.amax((*frames, -2)), pixels.amax((*frames, -1))
    for inside, size in ((columns, width), (rows, height)):
        first = inside.int().argmax(1)
        last = inside.shape[1] - inside.flip(1).int().argmax(1)
        margin = SURROUNDINGS * (last - first)
        sides.append(((first - margin) / size, (last + margin) / size))
    (left, right), (top, bottom) = sides
    boxes = torch.stack([left, top, right, bottom], 1).clamp(0, 1)
    return torch.where(rows.bool().any(1, keepdim=True), boxes, boxes.new_tensor([0, 0, 1, 1]))


def move_into(points: Tensor, boxes: Tensor, ratio: float) -> None:
    """Move the first `ratio` of uniform points (..., P, 2) into boxes, which broadcast to (..., P, 4)."""
    some = points[..., : round(ratio * points.shape[-2]), :]
    boxes = boxes.expand(*points.shape[:-1], 4)[..., : some.shape[-2], :]
    some.mul_(boxes[..., 2:] - boxes[..., :2]).add_(boxes[..., :2])
