"""From class and mask logits to results: semantic, instance and panoptic segmentation of one image.

Queries are chosen before their masks are resized, and masks are resized in bands of rows that fit a memory
budget.

Letters: `Q` queries, `K` classes, `n` chosen queries, `N` instances, `h, w` the sides of the mask logits, `R`
rows of a band, `H, W` the output's sides in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mask2former.modeling.bands import Sizes, image_band, over_bands, resize_band, resize_rows, source_rows
from mask2former.structures import Instances

TASKS = ("semantic", "instance", "panoptic")
MIB = 2**20
Segment = dict[str, Any]


@dataclass(frozen=True)
class InferenceOptions:
    """What to infer, and how.

    Args:
        tasks: some of TASKS.
        thing_ids: the classes whose instances are told apart. Panoptic output takes all other classes for
            stuff, so with none given it holds no things and, beside it, "instances" stays empty.
        object_mask_threshold: panoptic output uses queries above this class probability.
        overlap_threshold: a panoptic segment must keep this share of its query's own mask.
        max_instances: at most so many instances an image.
        resize_first: with semantic output alone, resize mask logits to the output, not the scores.
        memory_budget: bytes that resized masks may take at a time, results not counted.

    Raises:
        ValueError: an unknown task, or none; a negative number of instances.
    """

    tasks: tuple[str, ...] = TASKS
    thing_ids: tuple[int, ...] = ()
    object_mask_threshold: float = 0.8
    overlap_threshold: float = 0.8
    max_instances: int = 100
    resize_first: bool = False
    memory_budget: int = 256 * MIB

    def __post_init__(self) -> None:
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown or not self.tasks:
            raise ValueError(f"tasks are {list(self.tasks)}; choose one or more of {list(TASKS)}")
        if self.max_instances < 0:
            raise ValueError(f"TEST.DETECTIONS_PER_IMAGE is {self.max_instances}; it must not be negative")

    @property
    def semantic_on_resized(self) -> bool:
        """Whether semantic scores are made of mask logits at output size; other tasks force it."""
        return self.resize_first or set(self.tasks) != {"semantic"}

    @property
    def tells_things(self) -> bool:
        """Whether only things are instances; a model that knows no thing ids takes every class for one."""
        return bool(self.thing_ids) or "panoptic" in self.tasks


def infer(
    class_logits: Tensor,
    mask_logits: Tensor,
    sizes: Sizes,
    options: InferenceOptions,
    *,
    label_map: bool = False,
) -> dict[str, Any]:
    """The results of the tasks that are on, for one image.

    Args:
        class_logits: (Q, K+1), the last class "no object".
        mask_logits: (Q, h, w).
        label_map: give the semantic result as "label_map" (H, W), not as scores "sem_seg" (K, H, W), and
            "best_query_score", the largest probability of a class, to explain an empty result.

    Returns:
        "sem_seg" or "label_map", "panoptic_seg" and "instances", as the functions below return them.
    """
    budget = options.memory_budget
    results: dict[str, Any] = {}
    if label_map:
        results["best_query_score"] = class_logits.softmax(-1)[:, :-1].max()
    if "semantic" in options.tasks:
        name, function = ("label_map", semantic_label_map) if label_map else ("sem_seg", semantic_scores)
        results[name] = function(
            class_logits, mask_logits, sizes, resize_first=options.semantic_on_resized, memory_budget=budget
        )
    if "panoptic" in options.tasks:
        results["panoptic_seg"] = panoptic_segments(
            class_logits,
            mask_logits,
            sizes,
            thing_ids=options.thing_ids,
            object_mask_threshold=options.object_mask_threshold,
            overlap_threshold=options.overlap_threshold,
            memory_budget=budget,
        )
    if "instance" in options.tasks:
        results["instances"] = instances(
            class_logits,
            mask_logits,
            sizes,
            max_instances=options.max_instances,
            thing_ids=options.thing_ids if options.tells_things else None,
            memory_budget=budget,
        )
    return results


def semantic_scores(
    class_logits: Tensor, mask_logits: Tensor, sizes: Sizes, *, resize_first: bool, memory_budget: int
) -> Tensor:
    """How much each class claims each pixel: (K, H, W), the sum over queries of class times mask
    probability.
    """
    class_probabilities = class_logits.softmax(-1)[:, :-1].T
    scores = mask_logits.new_empty(len(class_probabilities), *sizes.output)

    def fill(rows: range) -> None:
        band = _score_band(class_probabilities, mask_logits, sizes, rows, resize_first)
        scores[:, rows.start : rows.stop] = band

    over_bands(fill, sizes, sum(class_probabilities.shape), memory_budget)
    return scores


def semantic_label_map(
    class_logits: Tensor, mask_logits: Tensor, sizes: Sizes, *, resize_first: bool, memory_budget: int
) -> Tensor:
    """The class of highest score of each pixel, (H, W) int32; scores of one band exist at a time."""
    class_probabilities = class_logits.softmax(-1)[:, :-1].T
    labels = torch.empty(sizes.output, dtype=torch.int32, device=mask_logits.device)

    def fill(rows: range) -> None:
        band = _score_band(class_probabilities, mask_logits, sizes, rows, resize_first)
        labels[rows.start : rows.stop] = band.argmax(0)

    over_bands(fill, sizes, sum(class_probabilities.shape), memory_budget)
    return labels


def instances(
    class_logits: Tensor,
    mask_logits: Tensor,
    sizes: Sizes,
    *,
    max_instances: int,
    thing_ids: Sequence[int] | None = None,
    memory_budget: int,
) -> Instances:
    """The most probable pairs of query and class, by falling score.

    The score is the class probability times the mean mask probability inside the mask. A query may appear
    under several classes; a mask may be empty, then its score and box are zero.

    Args:
        thing_ids: keep these classes only, after the best `max_instances` have been taken; None keeps all.

    Returns:
        `pred_masks`, `pred_boxes`, `scores` and `pred_classes` of N <= min(max_instances, Q K) instances.
    """
    probabilities = class_logits.softmax(-1)[:, :-1]
    num_classes = probabilities.shape[1]
    best, index = probabilities.flatten().topk(min(max_instances, probabilities.numel()))
    query, label = index // num_classes, index % num_classes
    if thing_ids is not None:
        kept = torch.isin(label, label.new_tensor(thing_ids))
        best, query, label = best[kept], query[kept], label[kept]
    distinct, which = query.unique(return_inverse=True)
    masks, confidence = _binary_masks(mask_logits[distinct], sizes, memory_budget)
    scores, order = (best * confidence[which]).sort(descending=True, stable=True)
    which = which[order]
    return Instances(
        sizes.output,
        pred_masks=masks[which],
        pred_boxes=mask_boxes(masks)[which],
        scores=scores,
        pred_classes=label[order],
    )


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

    Returns:
        A map (H, W) int32 of segment ids, 0 where there is none, and for each segment "id", "isthing" and
        "category_id". Stuff segments of one class are one segment.
    """
    probability, label = class_logits.softmax(-1).max(-1)
    kept = (label != class_logits.shape[1] - 1) & (probability > object_mask_threshold)
    probability, label, mask_logits = probability[kept], label[kept], mask_logits[kept]
    owner, own_area = _compete(probability, mask_logits, sizes, memory_budget)
    won = owner.flatten().bincount(minlength=2 * len(label))[: 2 * len(label)].view(-1, 2)
    facts = torch.cat([label[:, None], own_area[:, None], won], dim=1).tolist()  # the one copy to the host
    ids, segments = _number_segments(facts, set(thing_ids), overlap_threshold)
    table = torch.tensor(ids, dtype=torch.int32, device=owner.device)
    return (table[owner] if ids else owner), segments


def _compete(probability: Tensor, mask_logits: Tensor, sizes: Sizes, budget: int) -> tuple[Tensor, Tensor]:
    """Who wins each pixel, and the areas of the masks themselves.

    Args:
        probability: (n,) of the class.
        mask_logits: (n, h, w).

    Returns:
        (H, W) int32: twice the winner's number, plus one where the pixel is inside the winner's own mask; and
        (n,) pixels inside each mask.
    """
    owner = torch.zeros(sizes.output, dtype=torch.int32, device=mask_logits.device)
    if not len(probability):
        return owner, torch.zeros_like(probability, dtype=torch.int64)

    def fill(rows: range) -> Tensor:
        band = resize_band(mask_logits, sizes, rows)
        winner = (probability[:, None, None] * band.sigmoid()).argmax(0)
        inside = band >= 0
        owner[rows.start : rows.stop] = 2 * winner + inside.gather(0, winner[None])[0]
        return inside.flatten(1).sum(1)

    return owner, torch.stack(over_bands(fill, sizes, len(probability), budget)).sum(0)


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


def mask_boxes(masks: Tensor) -> Tensor:
    """The tight boxes (N, 4), float32 XYXY in pixels, right and bottom exclusive; zeros for an empty mask.

    Args:
        masks: (N, H, W) bool.
    """
    edges = []
    for dim in (1, 2):
        hit = masks.any(dim).int()  # (N, W), then (N, H)
        edges.append((hit.argmax(1), hit.shape[1] - hit.flip(1).argmax(1)))
    (left, right), (top, bottom) = edges
    boxes = torch.stack([left, top, right, bottom], dim=1).float()
    return boxes * masks.flatten(1).any(1)[:, None]


def _binary_masks(mask_logits: Tensor, sizes: Sizes, budget: int) -> tuple[Tensor, Tensor]:
    """Masks (n, H, W) bool of logits (n, h, w), and the mean probability (n,) inside each."""
    masks = torch.empty(len(mask_logits), *sizes.output, dtype=torch.bool, device=mask_logits.device)

    def fill(rows: range) -> Tensor:
        band = resize_band(mask_logits, sizes, rows)
        inside = masks[:, rows.start : rows.stop]
        torch.gt(band, 0, out=inside)
        return (band.sigmoid() * inside).flatten(1).sum(1)

    total = torch.stack(over_bands(fill, sizes, len(mask_logits), budget)).sum(0)
    return masks, total / (masks.flatten(1).sum(1) + 1e-6)


def _score_band(
    class_probabilities: Tensor, mask_logits: Tensor, sizes: Sizes, rows: range, resize_first: bool
) -> Tensor:
    """Semantic scores (K, R, W) of a band, from class probabilities (K, Q) and mask logits (Q, h, w)."""
    if resize_first:
        probabilities = resize_band(mask_logits, sizes, rows).sigmoid()
        return torch.einsum("kq,qhw->khw", class_probabilities, probabilities)
    needed = source_rows(rows, sizes.output[0], sizes.image[0])
    probabilities = image_band(mask_logits, sizes, needed).sigmoid()
    scores = torch.einsum("kq,qhw->khw", class_probabilities, probabilities)
    return resize_rows(scores, needed.start, sizes.image, sizes.output, rows)
