"""Panoptic segmentation: each pixel goes to one query, and queries that keep their masks are segments.

Shapes: `Q` queries, `K` classes, `n` queries above the threshold, `k` those that matter in a tile, `h, w`
the sides of the mask logits, `R, C` those of a tile, `H, W` the output's in pixels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mask2former.modeling.postprocessing.tiles import (
    Resizing,
    Sizes,
    Tile,
    contenders,
    over_tiles,
    tiles_within,
    to_output,
)

Segment = dict[str, Any]


def panoptic_segments(
    class_logits: Tensor,
    mask_logits: Tensor,
    sizes: Sizes,
    *,
    thing_ids: Sequence[int],
    object_mask_threshold: float,
    overlap_threshold: float,
    memory_budget: int,
) -> tuple[Tensor, list[Segment]]:
    """Each pixel goes to the query with the largest class times mask probability.

    Args:
        class_logits: (Q, K+1).
        mask_logits: (Q, h, w).

    Returns:
        A map (H, W) int32 of segment ids, 0 where there is none, and for each segment "id", "isthing" and
        "category_id". Stuff segments of one class are one segment.
    """
    probability, label = class_logits.softmax(-1).max(-1)
    kept = (label != class_logits.shape[1] - 1) & (probability > object_mask_threshold)
    probability, label, mask_logits = probability[kept], label[kept], mask_logits[kept]
    ids = torch.zeros(sizes.output, dtype=torch.int32, device=mask_logits.device)
    if not len(label):
        return ids, []
    tiles = tiles_within(memory_budget, sizes.output, len(label), mask_logits.device)
    counts = _compete(probability, mask_logits, sizes, tiles, owner=ids)
    facts = torch.cat([label[:, None], counts], dim=1).tolist()  # the one copy of them to the host
    numbers, segments = _number_segments(facts, set(thing_ids), overlap_threshold)
    table = torch.tensor(numbers, dtype=torch.int32, device=ids.device)
    for tile in tiles:
        tile.of(ids)[:] = table[tile.of(ids)]
    return ids, segments


def _compete(
    probability: Tensor, mask_logits: Tensor, sizes: Sizes, tiles: list[Tile], owner: Tensor
) -> Tensor:
    """Write into `owner` who wins each pixel, and count.

    Args:
        probability: (n,) of the class.
        mask_logits: (n, h, w).
        owner: (H, W) int32, becomes twice the winner's number, plus one where the pixel is inside the
            winner's own mask.

    Returns:
        (n, 3) pixels of each query: inside its mask, won outside it, and won inside it.
    """
    n = len(probability)
    whole = to_output(mask_logits, sizes)

    def fill(tile: Tile) -> Tensor:
        source = whole.source(mask_logits, tile)
        matters, own_area = _prospects(probability, source, tile, whole)
        band = whole.resize(source[matters], tile)
        inside = band >= 0
        own_area[matters] = inside.flatten(1).sum(1)
        winner = band.sigmoid_().mul_(probability[matters, None, None]).max(0).indices  # see semantic.py
        own = 2 * matters[winner] + inside.gather(0, winner[None])[0]
        tile.of(owner)[:] = own
        won = own.flatten().bincount(minlength=2 * n)
        return torch.cat([own_area[:, None], won.view(n, 2)], dim=1)

    return torch.stack(over_tiles(fill, tiles)).sum(0)


def _prospects(probability: Tensor, source: Tensor, tile: Tile, whole: Resizing) -> tuple[Tensor, Tensor]:
    """The numbers (k,) of the queries that may win a pixel of the tile or whose mask ends in it; and the
    pixels (n,) inside each mask, right for all others: the whole tile or none.
    """
    lower, upper = whole.bounds(source)
    scale = probability[:, None, None]
    covers, misses = (lower >= 0).flatten(1).all(1), (upper < 0).flatten(1).all(1)
    matters = contenders(scale * lower.sigmoid(), scale * upper.sigmoid()) | ~(covers | misses)
    return matters.nonzero()[:, 0], covers * tile.area


def _number_segments(
    facts: list[list[int]], thing_ids: set[int], overlap_threshold: float
) -> tuple[list[int], list[Segment]]:
    """The id of pixels outside and inside each query's mask, in turn, and the segments.

    Args:
        facts: of each query its class, its mask's area, and how many pixels it won outside and inside its
            mask.
    """
    ids: list[int] = []
    segments: list[Segment] = []
    stuff: dict[int, int] = {}
    for label, own_area, won_outside, won_inside in facts:
        lives = won_inside > 0 and (won_outside + won_inside) / own_area >= overlap_threshold
        segment_id = 0
        if lives:
            segment_id = stuff.get(label, len(segments) + 1)
            if segment_id > len(segments):
                is_thing = label in thing_ids
                segments.append({"id": segment_id, "isthing": is_thing, "category_id": label})
                if not is_thing:
                    stuff[label] = segment_id
        ids += [0, segment_id]
    return ids, segments
