"""One model for several tasks: each training image draws one of SOLVER.TASKS, and its targets follow."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

TASKS, SHARES = "SOLVER.TASKS", "SOLVER.TASK_SHARES"
STREAM = (1,)  # apart from the random stream of the augmentations, which have the sample's seed too


class TaskDraw(NamedTuple):
    """The tasks that training images draw from, with their shares of the images, which add up to 1."""

    tasks: tuple[str, ...]
    shares: tuple[float, ...]

    def __call__(self, seed: int) -> str:
        """Return the task of the sample with this seed."""
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=STREAM))
        return self.tasks[rng.choice(len(self.tasks), p=self.shares)]


def build_task_draw(solver: Any) -> TaskDraw | None:
    """Return how SOLVER.TASKS are drawn, by SOLVER.TASK_SHARES or else equally often; None without tasks.

    Raises:
        ValueError: there are shares, but not one for each task, or all of them are 0.
    """
    tasks, shares = tuple(solver.TASKS), tuple(solver.TASK_SHARES) or (1,) * len(solver.TASKS)
    if len(shares) != len(tasks):
        raise ValueError(
            f"{SHARES} has {len(shares)} numbers, but {TASKS} has {len(tasks)} names: give one for each"
        )
    if not tasks:
        return None
    if sum(shares) <= 0:
        raise ValueError(f"{SHARES} is {shares}; at least one task needs a share above 0")
    return TaskDraw(tasks, tuple(share / sum(shares) for share in shares))


def draws_instances(solver: Any) -> bool:
    """Return True if some images are trained on their instances, so that those annotations are needed."""
    return "instance" in solver.TASKS
