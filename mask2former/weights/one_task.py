"""One task taken out of a model for several: a Mask2Former whose queries hold the embeddings of the task.

The decoder adds embeddings of the task to its learned queries, and reads them nowhere else. So the sums are
the queries of a model for that task, which other programs know.
"""

from collections.abc import Mapping
from dataclasses import replace

from fvcore.common.config import CfgNode
from torch import Tensor

from mask2former.config import with_tasks, with_values
from mask2former.config.ranges import NAMES
from mask2former.weights.contents import Checkpoint
from mask2former.weights.rename import translate

KEY = "SOLVER.TASKS"
PREDICTOR = "sem_seg_head.predictor."
SUMS = {"query_feat.weight": "task_feat.weight", "query_embed.weight": "task_embed.weight"}


def one_task_weights(weights: Mapping[str, Tensor], task: str) -> dict[str, Tensor]:
    """Return the state dict of a model for one task, from that of a model for several."""
    place, found = NAMES[KEY].index(task), dict(weights)
    for queries, embeddings in SUMS.items():
        found[PREDICTOR + queries] = found[PREDICTOR + queries] + found.pop(PREDICTOR + embeddings)[place]
    return found


def require_one_task(cfg: CfgNode, checkpoint: Checkpoint, task: str | None) -> tuple[CfgNode, Checkpoint]:
    """Return config and checkpoint of a model for one task; those of a model for several, with `task`.

    Only the results of that task are on then.

    Raises:
        ValueError: the model is for several tasks, and `task` is None or none of them; or it is for one, and
            `task` is given.
    """
    tasks = tuple(cfg.SOLVER.TASKS)
    if task is None and not tasks:
        return cfg, checkpoint
    if not tasks:
        raise ValueError(f"{checkpoint.file} is no model for several tasks ({KEY}); leave --task out")
    if task is None or task not in tasks:
        given = "add --task TASK" if task is None else f"--task is {task}"
        raise ValueError(
            f"{checkpoint.file} is a model for several tasks; {given}, one of {', '.join(tasks)}"
        )
    cfg = with_tasks(with_values(cfg, {KEY: ()}, "--task"), [task], "--task")
    weights = one_task_weights(translate(checkpoint.model)[1], task)
    return cfg, replace(checkpoint, model=weights, config=cfg.dump())
