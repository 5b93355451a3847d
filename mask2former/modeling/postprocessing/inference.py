"""From class and mask logits to results: semantic, instance and panoptic segmentation of one image.

Queries are chosen before their masks are resized, and masks are resized tile by tile, where they can matter.

Shapes: `Q` queries, `K` classes, `h, w` the sides of the mask logits, `H, W` the output's in pixels.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any

import torch
from torch import Tensor

from mask2former.modeling.postprocessing.instance import instances
from mask2former.modeling.postprocessing.panoptic import panoptic_segments
from mask2former.modeling.postprocessing.semantic import View, semantic_label_map, semantic_scores
from mask2former.modeling.postprocessing.tiles import Sizes
from mask2former.modeling.postprocessing.tta import add_scores, mean_label_map

TASKS = ("semantic", "instance", "panoptic")
MIB = 2**20


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
    compact: bool = False,
) -> dict[str, Any]:
    """The results of the tasks that are on, for one image.

    Args:
        class_logits: (Q, K+1), the last class "no object".
        mask_logits: (Q, h, w).
        compact: give what takes little memory, at most a number a pixel: the semantic result as "label_map"
            (H, W), not as scores "sem_seg" (K, H, W); masks of instances as `RunLengthMasks`, not as a tensor
            (N, H, W); and "best_query_score", the largest probability of a class, to explain an empty result.

    Returns:
        "sem_seg" or "label_map", "panoptic_seg" and "instances", as the functions of the tasks return them.
    """
    results: dict[str, Any] = {}
    if compact:
        results["best_query_score"] = class_logits.softmax(-1)[:, :-1].max()
    with _float32_products(mask_logits.device):
        if "semantic" in options.tasks:
            name, function = ("label_map", semantic_label_map) if compact else ("sem_seg", semantic_scores)
            results[name] = function(
                class_logits,
                mask_logits,
                sizes,
                resize_first=options.semantic_on_resized,
                memory_budget=options.memory_budget,
            )
        if "panoptic" in options.tasks:
            results["panoptic_seg"] = panoptic_segments(
                class_logits,
                mask_logits,
                sizes,
                thing_ids=options.thing_ids,
                object_mask_threshold=options.object_mask_threshold,
                overlap_threshold=options.overlap_threshold,
                memory_budget=options.memory_budget,
            )
        if "instance" in options.tasks:
            results["instances"] = instances(
                class_logits,
                mask_logits,
                sizes,
                max_instances=options.max_instances,
                thing_ids=options.thing_ids if options.tells_things else None,
                memory_budget=options.memory_budget,
            )
            if not compact:
                masks = results["instances"].pred_masks
                results["instances"].set("pred_masks", masks.dense().to(mask_logits.device))
    return results


def infer_views(
    views: Iterator[View], pixels: Sequence[int], options: InferenceOptions, *, compact: bool = False
) -> dict[str, Any]:
    """The semantic result of one image, averaged over views of it that are made one by one.

    Held are either the logits of all views or the sum of the scores, whichever is less: at most K numbers a
    pixel, and with a compact result often far fewer. Beside them there are a view's own logits, and what the
    memory budget allows.

    Args:
        views: at least one.
        pixels: how many each of them has.

    Returns:
        "label_map" (H, W) with `compact`, else "sem_seg" (K, H, W).
    """
    first = next(views)
    device, logits = first.mask_logits.device, first.mask_logits.numel() * sum(pixels) / pixels[0]
    resize_first, memory_budget = options.semantic_on_resized, options.memory_budget
    if compact and logits < first.num_classes * prod(first.sizes.output):
        held = [first, *views]
        with _float32_products(device):
            return {"label_map": mean_label_map(held, resize_first=resize_first, memory_budget=memory_budget)}
    total = first.mask_logits.new_zeros(first.num_classes, *first.sizes.output)
    for view in chain([first], views):
        with _float32_products(device):  # not around the network
            add_scores(total, view, resize_first=resize_first, memory_budget=memory_budget)
    return {"label_map": total.argmax(0).int()} if compact else {"sem_seg": total.div_(len(pixels))}


@contextmanager
def _float32_products(device: torch.device) -> Iterator[None]:
    """Products keep float32 whatever autocast and the precision chosen for the network's say: masks end where
    logits change sign.
    """
    chosen = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(chosen)
