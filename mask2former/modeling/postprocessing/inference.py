"""Post-processing of one image: from its prediction to semantic, instance and panoptic results.

Queries are selected before their masks are resized, and masks are resized tile by tile, only where they can
matter.

Shapes: `K` classes, `N` instances, `H, W` the output's sides in pixels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from mask2former.modeling.postprocessing.instance import predict_instances
from mask2former.modeling.postprocessing.panoptic import panoptic_segments
from mask2former.modeling.postprocessing.semantic import semantic_label_map, semantic_scores
from mask2former.modeling.predictions import ImagePrediction

TASKS = ("semantic", "instance", "panoptic")
MIB = 2**20


@dataclass(frozen=True)
class InferenceOptions:
    """Tasks and thresholds of post-processing.

    Args:
        tasks: some of TASKS.
        thing_ids: the thing classes. Panoptic output takes all other classes for stuff; if none are given, it
            holds no things, and "instances" beside it stays empty.
        object_mask_threshold: panoptic output uses queries above this class probability.
        overlap_threshold: a panoptic segment must keep this share of its query's own mask.
        max_instances: the largest number of instances per image.
        layer: the prediction to use: 0 the one before the first layer, -1 the last.
        proposals: each query is one instance, of its best class (the paper's Figure 3).
        resize_first: with semantic output alone, resize mask logits to the output size instead of the scores.
        memory_budget: bytes that resized masks may take at a time, results not counted.

    Raises:
        ValueError: an unknown task, or none; a negative number of instances.
    """

    tasks: tuple[str, ...] = TASKS
    thing_ids: tuple[int, ...] = ()
    object_mask_threshold: float = 0.8
    overlap_threshold: float = 0.8
    max_instances: int = 100
    layer: int = -1
    proposals: bool = False
    resize_first: bool = False
    memory_budget: int = 256 * MIB

    def __post_init__(self) -> None:
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown or not self.tasks:
            raise ValueError(f"tasks are {list(self.tasks)}; choose one or more of {list(TASKS)}")
        if self.max_instances < 0:
            raise ValueError(f"TEST.DETECTIONS_PER_IMAGE is {self.max_instances}; it must not be negative")

    @property
    def resizes_logits(self) -> bool:
        """Return True if semantic scores are computed at output size, which the other tasks enforce."""
        return self.resize_first or set(self.tasks) != {"semantic"}

    @property
    def things_only(self) -> bool:
        """Return True if only thing classes have instances; without any thing ids, all classes have."""
        return bool(self.thing_ids) or "panoptic" in self.tasks


def build_inference_options(cfg: Any) -> InferenceOptions:
    """Read the tasks and thresholds from a config; raise ValueError if no task is on."""
    test = cfg.MODEL.MASK_FORMER.TEST
    return InferenceOptions(
        tasks=tuple(task for task in TASKS if test[f"{task.upper()}_ON"]),
        thing_ids=tuple(cfg.MODEL.MASK_FORMER.THING_IDS),
        object_mask_threshold=test.OBJECT_MASK_THRESHOLD,
        overlap_threshold=test.OVERLAP_THRESHOLD,
        max_instances=cfg.TEST.DETECTIONS_PER_IMAGE,
        layer=test.LAYER,
        proposals=cfg.TEST.PROPOSALS,
        resize_first=test.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE,
        memory_budget=test.MEMORY_BUDGET_MB * MIB,
    )


def post_process(
    prediction: ImagePrediction, options: InferenceOptions, *, compact: bool = False
) -> dict[str, Any]:
    """Return the results of one image for the tasks of `options`.

    They are "sem_seg", scores (K, H, W); "panoptic_seg", a map (H, W) of segment ids and a list of segments;
    "instances" with masks (N, H, W). If `compact`, they take little memory at any output size: a "label_map"
    (H, W) replaces the scores, masks are `RunLengthMasks`, and "best_query_score", the largest class
    probability of any query, explains an empty panoptic result. The field `pred_queries` of instances and
    "segment_queries" then tell the query of each.

    Raises:
        ValueError: tasks have queries of their own, and one of those wanted has none.
    """
    results: dict[str, Any] = {}
    budget = options.memory_budget
    of_task = {task: prediction.of_task(task) for task in options.tasks}
    if compact:
        results["best_query_score"] = best_query_score(prediction, options)
    with exact_float32(prediction.mask_logits.device):
        if "semantic" in options.tasks:
            name, function = ("label_map", semantic_label_map) if compact else ("sem_seg", semantic_scores)
            results[name] = function(
                of_task["semantic"], resize_first=options.resizes_logits, memory_budget=budget
            )
        if "panoptic" in options.tasks:
            ids, segments, queries = panoptic_segments(
                of_task["panoptic"],
                thing_ids=options.thing_ids,
                object_mask_threshold=options.object_mask_threshold,
                overlap_threshold=options.overlap_threshold,
                memory_budget=budget,
            )
            results["panoptic_seg"] = ids, segments
            if compact:
                all_queries = prediction.queries_of_task("panoptic")
                results["segment_queries"] = [all_queries[query] for query in queries]
        if "instance" in options.tasks:
            instances = predict_instances(
                of_task["instance"],
                max_instances=options.max_instances,
                thing_ids=options.thing_ids if options.things_only else None,
                one_class_per_query=options.proposals,
                memory_budget=budget,
            )
            if compact:
                instances.pred_queries += prediction.queries_of_task("instance").start
            else:
                instances.set("pred_masks", instances.pred_masks.dense().to(prediction.mask_logits.device))
                instances.remove("pred_queries")
            results["instances"] = instances
    return results


def best_query_score(prediction: ImagePrediction, options: InferenceOptions) -> torch.Tensor:
    """Return the largest class probability of any query; of those for panoptic results, if these are on."""
    explained = prediction.of_task("panoptic") if "panoptic" in options.tasks else prediction
    return explained.probabilities[:, :-1].max()


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Compute matrix products in full float32: masks end where logits change sign.

    Autocast and the lower precision that may be set for the network do not apply.
    """
    chosen = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(chosen)
