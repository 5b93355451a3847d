"""Results of DETR, by the rules of its released code, which differ from Mask2Former's.

A query has one class, and a score: that class's probability. Masks are compared and cut off at the image's
size; what comes out is resized to the output by the nearest pixels.

Shapes: `Q` queries, `K` classes, `n` queries kept, `N` instances, `h, w` the sides of the mask logits, `H, W`
those of the output in pixels.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mask2former.modeling.postprocessing.inference import InferenceOptions, exact_float32
from mask2former.modeling.postprocessing.panoptic import SegmentInfo
from mask2former.modeling.postprocessing.semantic import semantic_label_map
from mask2former.modeling.postprocessing.tiles import resizing
from mask2former.modeling.predictions import ImagePrediction, Sizes
from mask2former.structures import Boxes, Instances, RunLengthMasks
from mask2former.utils.label_maps import nearest_pixels

SMALLEST_SEGMENT = 5  # pixels of the output


def detr_results(
    prediction: ImagePrediction, options: InferenceOptions, *, compact: bool = False
) -> dict[str, Any]:
    """Return "panoptic_seg" and "instances" of one image, as of `post_process`, for the tasks of `options`.

    If `compact`, masks are `RunLengthMasks`, and there are "best_query_score" and the queries of results.
    """
    results: dict[str, Any] = {}
    if compact:
        results["best_query_score"] = prediction.probabilities[:, :-1].max()
    with exact_float32(prediction.mask_logits.device):
        if "panoptic" in options.tasks:
            ids, segments, queries = detr_panoptic(prediction, options)
            results["panoptic_seg"] = ids, segments
            if compact:
                results["segment_queries"] = queries
        if "instance" in options.tasks:
            instances = detr_instances(prediction, options)
            if not compact:
                instances.set("pred_masks", instances.pred_masks.dense().to(prediction.mask_logits.device))
                instances.remove("pred_queries")
            results["instances"] = instances
    return results


def needed_queries(probabilities: Tensor, options: InferenceOptions) -> Tensor:
    """Return the queries (n,), in order, that results are made of: of class probabilities (Q, K+1)."""
    needed = torch.zeros(len(probabilities), dtype=torch.bool, device=probabilities.device)
    needed[probabilities[:, :-1].amax(1).argmax()] = True  # of "best_query_score"
    if "panoptic" in options.tasks:
        needed |= _segments(probabilities, options)[0]
    if "instance" in options.tasks:
        needed |= _objects(probabilities, options)[0]
    return needed.nonzero()[:, 0]


def _segments(probabilities: Tensor, options: InferenceOptions) -> tuple[Tensor, Tensor]:
    """Return which queries may be panoptic segments, and the most probable output of each, (Q,)."""
    score, label = probabilities.max(-1)
    is_object = label != probabilities.shape[1] - 1
    return is_object & (score > options.object_mask_threshold), label


def _objects(probabilities: Tensor, options: InferenceOptions) -> tuple[Tensor, Tensor, Tensor]:
    """Return which queries may be instances, and score and class of each, (Q,)."""
    scores, labels = probabilities[:, :-1].max(-1)
    if not options.things_only:
        return torch.ones_like(labels, dtype=torch.bool), scores, labels
    return torch.isin(labels, labels.new_tensor(options.thing_ids)), scores, labels


def detr_panoptic(
    prediction: ImagePrediction, options: InferenceOptions
) -> tuple[Tensor, list[SegmentInfo], list[int]]:
    """Assign each pixel to the query with the largest mask logit, among those above the threshold.

    The first query of a stuff class gets the pixels of all. Queries with fewer than `SMALLEST_SEGMENT` pixels
    are dropped, and the others compete again, until none has. The released code drops the other queries of a
    stuff class with them, as they are left without pixels; so their pixels are contested, not merged.

    Returns:
        A map (H, W) int32 of segment ids, 0 where there is none, and for each segment "id", "isthing" and
        "category_id"; and the position of each segment's query among Q.
    """
    kept, label = _segments(prediction.probabilities, options)
    logits, sizes = prediction.mask_logits[kept], prediction.sizes
    labels, things = label[kept].tolist(), set(options.thing_ids)
    merged = torch.tensor(_first_of_stuff(labels, things), dtype=torch.int64, device=logits.device)
    rivals = torch.arange(len(labels), device=logits.device)
    while len(rivals):
        winners = _winners(logits[rivals], sizes, options.memory_budget)
        owner = merged[rivals][nearest(winners, sizes.output)]
        large = owner.flatten().bincount(minlength=len(labels))[rivals] >= SMALLEST_SEGMENT
        if large.all():
            queries = kept.nonzero()[rivals, 0].tolist()
            return *_number_segments(owner, rivals, labels, things), queries
        rivals = rivals[large]
    return torch.zeros(sizes.output, dtype=torch.int32, device=logits.device), [], []


def _first_of_stuff(labels: list[int], things: set[int]) -> list[int]:
    """Return for each query the first one of its class if that is stuff, else itself."""
    return [query if label in things else labels.index(label) for query, label in enumerate(labels)]


def _winners(logits: Tensor, sizes: Sizes, memory_budget: int) -> Tensor:
    """Return the query of the largest logit (n, h, w) at each pixel of the image, int32."""
    certain = torch.eye(len(logits), len(logits) + 1, device=logits.device)
    maps = ImagePrediction(certain, logits, sizes._replace(output=sizes.image), per_pixel=True)
    return semantic_label_map(maps, resize_first=True, memory_budget=memory_budget)


def _number_segments(
    owner: Tensor, queries: Tensor, labels: list[int], things: set[int]
) -> tuple[Tensor, list[SegmentInfo]]:
    """Return the map of segment ids and the segments, of a map of `queries`, all of which own pixels."""
    ids = owner.new_zeros(len(labels), dtype=torch.int32)
    ids[queries] = torch.arange(1, len(queries) + 1, dtype=torch.int32, device=ids.device)
    classes = [labels[query] for query in queries.tolist()]
    segments = [
        {"id": number, "isthing": label in things, "category_id": label}
        for number, label in enumerate(classes, start=1)
    ]
    return ids[owner], segments


def detr_instances(prediction: ImagePrediction, options: InferenceOptions) -> Instances:
    """Return the N best queries whose class is a thing, by decreasing score, with masks and predicted boxes.

    The fields are those of `predict_instances`. A mask may be empty, whatever its score.
    """
    assert prediction.boxes is not None
    objects, scores, labels = _objects(prediction.probabilities, options)
    best = scores[objects].sort(descending=True, stable=True).indices[: options.max_instances]
    order = objects.nonzero()[best, 0]
    height, width = prediction.sizes.output
    scale = prediction.boxes.new_tensor([width, height, width, height])
    return Instances(
        prediction.sizes.output,
        pred_masks=_masks(prediction.mask_logits[order], prediction.sizes),
        pred_boxes=(prediction.boxes[order].clamp(0, 1) * scale).as_subclass(Boxes),
        scores=scores[order],
        pred_classes=labels[order],
        pred_queries=order,
    )


def _masks(mask_logits: Tensor, sizes: Sizes) -> RunLengthMasks:
    """Return the masks (N, H, W), on the CPU, of logits (N, h, w) that are positive inside."""
    whole = resizing(mask_logits.shape[1:], [(sizes.padded, sizes.image)], mask_logits.device)
    rows, columns = whole.rows.weights, whole.columns.weights
    found = (nearest(rows.T @ logits @ columns > 0, sizes.output) for logits in mask_logits)
    return RunLengthMasks(sizes.output, [_runs(mask) for mask in found])


def _runs(mask: Tensor) -> Tensor:
    """Return the runs (m, 2) of a mask (H, W), counted down the columns, on the CPU."""
    steps = F.pad(mask.T.flatten(), (1, 1)).diff()
    return steps.nonzero().view(-1, 2).cpu()


def nearest(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps (h, w) at `size` (H, W), each pixel the one that Pillow takes for the nearest."""
    rows, columns = (
        torch.tensor(nearest_pixels(old, new), device=maps.device)
        for old, new in zip(maps.shape, size, strict=True)
    )
    return maps[rows][:, columns]
