"""One decoder for several tasks: a learned embedding of the task, added to the queries.

OneFormer (Jain et al., CVPR 2023) trains one model for three tasks by drawing a task for each image, with
targets of that task, and tells it the task by a token. Here the token is two embeddings, one added to the
features and one to the positions of all queries of an image. They are zero at first, so that a model begins
as it would be without.

For one task, they could as well be part of the learned queries. So a model read for one task is a
Mask2Former with other queries (`weights/one_task.py`).

Shapes: `B` images, `T` tasks that an image is read for, `Q` queries, `C` channels.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mask2former.modeling.postprocessing.inference import TASKS

NEEDED = (
    "MODEL.META_ARCHITECTURE MaskFormer, MODEL.SEM_SEG_HEAD.NAME MaskFormerHead and "
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME MultiScaleMaskedTransformerDecoder"
)


def task_embedding(width: int) -> nn.Embedding:
    """Return zeros (3, C), a row for each of TASKS; no random number is drawn."""
    return nn.Embedding.from_pretrained(torch.zeros(len(TASKS), width), freeze=False)


def task_indices(tasks: Iterable[str], device: torch.device) -> Tensor:
    """Return the places (T,) of tasks in TASKS."""
    return torch.tensor([TASKS.index(task) for task in tasks], device=device)


def for_each_task(weight: Tensor, embedding: nn.Embedding, tasks: Tensor) -> Tensor:
    """Return learned queries (Q, C) for each of the tasks (B, T), one task after the other: (B, T Q, C)."""
    return (weight + embedding(tasks)[:, :, None]).flatten(1, 2)


def blocked_between_tasks(num_tasks: int, num_queries: int, device: torch.device) -> Tensor | None:
    """Return the queries (1, T Q, T Q) bool that each must not attend to: those of other tasks."""
    if num_tasks == 1:
        return None
    task = torch.arange(num_tasks, device=device).repeat_interleave(num_queries)
    return (task[:, None] != task)[None]


def check_tasks(cfg: Any, trained: Sequence[str]) -> None:
    """Check SOLVER.TASKS, given the tasks that the head of the model can be `trained` for.

    Raises:
        ValueError: the model is trained for one task, has no learned queries, or a task is on for which it
            is not trained.
    """
    tasks, decoder = tuple(cfg.SOLVER.TASKS), cfg.MODEL.MASK_FORMER
    if not tasks:
        return
    if tuple(trained) != tasks or cfg.MODEL.META_ARCHITECTURE != "MaskFormer":
        raise ValueError(f"SOLVER.TASKS ({', '.join(tasks)}) needs {NEEDED}; type SOLVER.TASKS ()")
    if not decoder.DECODER.LEARNED_QUERIES:
        raise ValueError("SOLVER.TASKS needs MODEL.MASK_FORMER.DECODER.LEARNED_QUERIES True")
    for task in TASKS:
        key = f"{task.upper()}_ON"
        if decoder.TEST[key] and task not in tasks:
            raise ValueError(
                f"MODEL.MASK_FORMER.TEST.{key} is True, but SOLVER.TASKS is ({', '.join(tasks)}); type "
                f"MODEL.MASK_FORMER.TEST.{key} False"
            )
