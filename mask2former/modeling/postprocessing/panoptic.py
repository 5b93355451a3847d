"""Panoptic segmentation: each pixel goes to one query, and queries that keep most of their mask are segments.

Shapes: `Q` queries, `n` queries above the threshold, `h, w` the sides of the
mask logits, `R, C` those of a tile, `H, W` those of the output in pixels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mask2former.modeling.postprocessing.tiles import Tile, contenders, over_tiles, tiles_within, to_output
from mask2former.modeling.predictions import ImagePrediction, Sizes

SegmentInfo = dict[str, Any]


def panoptic_segments(
    prediction: ImagePrediction,
    *,
    thing_ids: Sequence[int],
    object_mask_threshold: float,
    overlap_threshold: float,
    memory_budget: int,
) -> tuple[Tensor, list[SegmentInfo], list[int]]:
    """Assign each pixel to the query with the largest product of class and mask probability.

    The result is a map (H, W) int32 of segment ids, 0 where there is none, and for each segment "id",
    "isthing" and "category_id"; and the position of each segment's query among Q. Stuff of one class is one
    segment, of the first of its queries.

    Queries below the threshold get no pixels, and a segment has pixels inside of its query's mask alone. If
    the prediction's queries `all_compete`, the rules are those of K-Net's public code: all queries get
    pixels; the threshold then drops things with theirs, stuff never; and a segment has all pixels that its
    query won. (That code resizes mask probabilities. Here logits are resized, as for all models.)
    """
    all_compete = prediction.all_compete
    probability, label = prediction.probabilities.max(-1)
    sure = (label != prediction.num_classes) & (probability > object_mask_threshold)
    kept = torch.ones_like(sure) if all_compete else sure
    probability, label, mask_logits = probability[kept], label[kept], prediction.mask_logits[kept]
    sizes = prediction.sizes
    ids = torch.zeros(sizes.output, dtype=torch.int32, device=mask_logits.device)
    if not len(label):
        return ids, [], []
    tiles = tiles_within(memory_budget, sizes.output, len(label), mask_logits.device)
    counts = _assign_pixels(probability, mask_logits, sizes, tiles, owner=ids)
    if all_compete:
        is_stuff = ~torch.isin(label, label.new_tensor(thing_ids))
        counts *= (sure | is_stuff)[:, None]
    # The only copy of them to the host
    rows = torch.cat([kept.nonzero(), label[:, None], counts], dim=1).tolist()
    numbers, segments, queries = _number_segments(rows, set(thing_ids), overlap_threshold, all_compete)
    table = torch.tensor(numbers, dtype=torch.int32, device=ids.device)
    for tile in tiles:
        tile.of(ids)[:] = table[tile.of(ids)]
    return ids, segments, queries


def _assign_pixels(
    probability: Tensor, mask_logits: Tensor, sizes: Sizes, tiles: list[Tile], owner: Tensor
) -> Tensor:
    """Return the pixels (n, 3) of each query: inside its mask, won outside it, and won inside it.

    Class probabilities are (n,), mask logits (n, h, w). `owner` (H, W) int32 becomes twice the number of the
    query that wins the pixel, plus one inside that query's own mask.
    """
    n, scale = len(probability), probability[:, None, None]
    whole = to_output(mask_logits, sizes)

    def fill(tile: Tile) -> Tensor:
        source = whole.source(mask_logits, tile)
        lower, upper = whole.bounds(source)
        covers, misses = (lower >= 0).flatten(1).all(1), (upper < 0).flatten(1).all(1)
        may_win = contenders(scale * lower.sigmoid(), scale * upper.sigmoid())
        # The masks of all other queries cover the whole tile or nothing of it.
        matters = (may_win | ~(covers | misses)).nonzero()[:, 0]
        mask_area = covers * tile.area
        band = whole.resize(source[matters], tile)
        inside = band >= 0
        mask_area[matters] = inside.flatten(1).sum(1)
        # `max` gives the same indices as `argmax`, several times as fast
        winner = band.sigmoid_().mul_(scale[matters]).max(0).indices
        code = 2 * matters[winner] + inside.gather(0, winner[None])[0]
        tile.of(owner)[:] = code
        won = code.flatten().bincount(minlength=2 * n)
        return torch.cat([mask_area[:, None], won.view(n, 2)], dim=1)

    return torch.stack(over_tiles(fill, tiles)).sum(0)


def _number_segments(
    rows: list[list[int]], thing_ids: set[int], overlap_threshold: float, keep_outside: bool
) -> tuple[list[int], list[SegmentInfo], list[int]]:
    """Return the segment ids of the pixels that each query won, outside its mask and inside; the segments.

    The last result is the query of each segment. `rows` are each query's position, its class, its mask's
    area, and the pixels it won outside and inside its mask.
    `keep_outside` gives a segment also those outside.
    """
    ids: list[int] = []
    segments: list[SegmentInfo] = []
    queries: list[int] = []
    stuff: dict[int, int] = {}
    for query, label, mask_area, won_outside, won_inside in rows:
        segment_id, won = 0, won_outside + won_inside
        counted = won if keep_outside else won_inside
        if counted > 0 and mask_area > 0 and won / mask_area >= overlap_threshold:
            segment_id = stuff.get(label, len(segments) + 1)
            if segment_id > len(segments):
                is_thing = label in thing_ids
                segments.append({"id": segment_id, "isthing": is_thing, "category_id": label})
                queries.append(query)
                if not is_thing:
                    stuff[label] = segment_id
        ids += [segment_id if keep_outside else 0, segment_id]
    return ids, segments, queries
