"""The length of a run: SOLVER.EPOCHS as steps."""

import logging
import math
from collections.abc import Callable
from typing import Any

from mask2former.config import CfgNode

logger = logging.getLogger(__name__)

EPOCHS, MAX_ITER, STEPS = "SOLVER.EPOCHS", "SOLVER.MAX_ITER", "SOLVER.STEPS"


def epoch_schedule(cfg: CfgNode, epoch_size: Callable[[], float]) -> dict[str, Any]:
    """Return MAX_ITER and STEPS as SOLVER.EPOCHS decides; nothing if it is 0, so that MAX_ITER holds.

    A typed MAX_ITER wins over EPOCHS of a config file, which then become 0. `epoch_size` returns the number
    of images in an epoch; it is called only if it is needed.

    Raises:
        ValueError: EPOCHS is negative, or was typed together with the steps that it decides.
    """
    solver = cfg.SOLVER
    if solver.EPOCHS < 0:
        raise ValueError(f"{EPOCHS} is {solver.EPOCHS}; it must not be negative (0: as SOLVER.MAX_ITER says)")
    if not solver.EPOCHS:
        return {}
    typed = [key for key in (MAX_ITER, STEPS) if cfg.is_typed(key)]
    if typed and cfg.is_typed(EPOCHS):
        raise ValueError(f"{EPOCHS} and {' and '.join(typed)} were given, but one decides the other")
    if MAX_ITER in typed:
        return {EPOCHS: 0.0}
    if solver.IMS_PER_BATCH < 1:
        raise ValueError(f"SOLVER.IMS_PER_BATCH is {solver.IMS_PER_BATCH}; it must be at least 1")
    images = epoch_size()
    steps = math.ceil(solver.EPOCHS * images / solver.IMS_PER_BATCH)
    logger.info(
        "%g epochs of %.6g images, %d a step: SOLVER.MAX_ITER is %d",
        *(solver.EPOCHS, images, solver.IMS_PER_BATCH, steps),
    )
    return scaled_steps(solver, steps)


def scaled_steps(solver: CfgNode, max_iter: int) -> dict[str, Any]:
    """Return MAX_ITER and STEPS of a run of another length: the rate falls after the same fractions of it."""
    scaled = tuple(round(step * max_iter / max(solver.MAX_ITER, 1)) for step in solver.STEPS)
    return {MAX_ITER: max_iter, STEPS: scaled}
