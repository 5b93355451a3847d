"""Ids of tracks in the results of frames.

Shapes: `Q` queries, `N` objects, `C` channels, `K` classes, `h, w` the sides of the mask logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from mask2former.modeling.predictions import ImagePrediction
from mask2former.result import Panoptic, Result
from mask2former.structures import Instances
from mask2former.tracking.matching import mask_ious
from mask2former.tracking.tracker import Objects, Track, Tracker

SAME_OBJECT = 0.5  # IoU of an instance and a segment
MASK_SIDE = 128  # cells of masks that are compared


def track_result(
    tracker: Tracker,
    result: Result,
    prediction: ImagePrediction,
    segment_queries: Sequence[int],
    classes: Sequence[int],
) -> Result:
    """Return the result of the next frame with the tracks of its instances and panoptic things.

    They get the class of their track, `classes` being those that objects may have. Of the instances of one
    query, that with the best score is kept.

    Raises:
        ValueError: the prediction has no embeddings.
    """
    instances = None if result.instances is None else _one_a_query(result.instances)
    segments = [] if result.panoptic is None else result.panoptic.segments
    things = [q for q, segment in zip(segment_queries, segments, strict=True) if segment["isthing"]]
    tracks = _tracks(
        tracker, prediction, [] if instances is None else instances.pred_queries.tolist(), things
    )
    if instances is not None:
        instances = _tracked_instances(instances, tracks, classes)
    panoptic = result.panoptic
    if panoptic is not None:
        pairs = zip(segment_queries, segments, strict=True)
        tracked = [_tracked_segment(segment, tracks.get(query), classes) for query, segment in pairs]
        panoptic = Panoptic(panoptic.ids, tracked)
    return replace(result, instances=instances, panoptic=panoptic)


def _tracks(
    tracker: Tracker, prediction: ImagePrediction, instances: list[int], things: list[int]
) -> dict[int, Track]:
    """Return the track of each query that is an instance or a panoptic thing.

    One object may be an instance of one query and a segment of another, which then share a track.
    """
    queries = list(dict.fromkeys(instances + things))
    objects = _objects(prediction, queries)
    overlaps = mask_ious(objects.masks, objects.masks[: len(instances)])
    owners = list(range(len(queries)))
    for i in range(len(instances), len(queries)):
        if len(instances) and overlaps[i].max() > SAME_OBJECT:
            owners[i] = int(overlaps[i].argmax())
    distinct = sorted(set(owners))
    tracks = tracker.update(Objects(*(values[distinct] for values in objects)))
    return {query: tracks[distinct.index(owner)] for query, owner in zip(queries, owners, strict=True)}


def _objects(prediction: ImagePrediction, queries: list[int]) -> Objects:
    """Return the objects of some queries; the sides of masks are at most MASK_SIDE."""
    if prediction.embeddings is None:
        raise ValueError(
            "tracking compares the embeddings of queries, which this model does not tell; an exported file "
            "lacks them: open the checkpoint that it was exported from"
        )
    index = torch.tensor(queries, dtype=torch.int64, device=prediction.mask_logits.device)
    return Objects(
        embeddings=prediction.embeddings[index].cpu().numpy(),
        probabilities=prediction.probabilities[index, :-1].cpu().numpy(),
        masks=_coarse_masks(prediction.mask_logits[index]).cpu().numpy(),
    )


def _coarse_masks(mask_logits: Tensor) -> Tensor:
    """Return masks (N, h', w') bool of logits (N, h, w); a cell is set if any logit in it is positive."""
    step = -(-max(mask_logits.shape[1:]) // MASK_SIDE)
    return max_pool2d(mask_logits[:, None], step, ceil_mode=True)[:, 0] > 0


def _one_a_query(instances: Instances) -> Instances:
    """Return the first instance, which has the best score, of each query."""
    first = {query: i for i, query in reversed(list(enumerate(instances.pred_queries.tolist())))}
    return instances[sorted(first.values())]


def _tracked_instances(
    instances: Instances, tracks: Mapping[int, Track], classes: Sequence[int]
) -> Instances:
    """Return the instances with `track_ids` in the place of queries, and the classes of their tracks."""
    own = [tracks[query] for query in instances.pred_queries.tolist()]
    fields = {name: value for name, value in instances.get_fields().items() if name != "pred_queries"}
    fields["pred_classes"] = torch.tensor([track.class_among(classes) for track in own], dtype=torch.int64)
    fields["track_ids"] = torch.tensor([track.id for track in own], dtype=torch.int64)
    return Instances(instances.image_size, **fields)


def _tracked_segment(
    segment: Mapping[str, Any], track: Track | None, classes: Sequence[int]
) -> dict[str, Any]:
    """Return the segment; a thing has the id, the class, and the mean probability of its track."""
    if track is None or not segment["isthing"]:
        return dict(segment)
    category = track.class_among(classes)
    score = float(track.probabilities[category])
    return {**segment, "category_id": category, "track_id": track.id, "score": score}
