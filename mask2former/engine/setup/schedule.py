"""SOLVER.EPOCHS and SOLVER.REFERENCE_BATCH, as the steps and pieces of steps that training knows.

Both are ways to state a schedule for other data and less memory than it was made for. What they decide is
written into MAX_ITER and STEPS, and into IMS_PER_BATCH and ACCUMULATION_STEPS, so that a saved config holds
it; applying them once more changes nothing.
"""

import logging
import math
from collections.abc import Collection

from fvcore.common.config import CfgNode

from mask2former.data.loader import expected_epoch_size
from mask2former.data.records import Datasets
from mask2former.utils.comm import world_size

logger = logging.getLogger(__name__)

EPOCHS, REFERENCE = "SOLVER.EPOCHS", "SOLVER.REFERENCE_BATCH"
STEP_KEYS = ("SOLVER.MAX_ITER", "SOLVER.STEPS")
PIECES = "SOLVER.ACCUMULATION_STEPS"


def apply_schedule(cfg: CfgNode, typed_keys: Collection[str] = (), datasets: Datasets | None = None) -> None:
    """Write into `cfg.SOLVER` what EPOCHS and REFERENCE_BATCH decide; `typed_keys` are those the user typed.

    A step has REFERENCE_BATCH images, IMS_PER_BATCH of them at once, if that is less; its loss is the mean
    over such pieces, each of them normalized by its own objects. EPOCHS decide MAX_ITER, and STEPS are scaled
    with it; a typed MAX_ITER goes before EPOCHS of a config file.

    Raises:
        ValueError: what was typed contradicts itself, or the batch cannot be made up.
        DatasetError: the datasets of DATASETS.TRAIN cannot be read (with EPOCHS only).
    """
    _apply_reference_batch(cfg, typed_keys)
    _apply_epochs(cfg, typed_keys, datasets)


def _apply_reference_batch(cfg: CfgNode, typed_keys: Collection[str]) -> None:
    solver = cfg.SOLVER
    reference, at_once = solver.REFERENCE_BATCH, solver.IMS_PER_BATCH
    if reference < 0 or at_once < 1:
        raise ValueError(
            f"{REFERENCE} is {reference} and SOLVER.IMS_PER_BATCH {at_once}: no numbers of images"
        )
    if reference <= at_once:
        if 0 < reference < at_once:
            logger.info("steps have %d images, more than %s %d", at_once, REFERENCE, reference)
        return
    if reference % at_once or at_once % world_size():
        raise ValueError(_cannot_be_made_up(reference, at_once))
    pieces = reference // at_once
    if PIECES in typed_keys and pieces != solver.ACCUMULATION_STEPS:
        raise ValueError(
            f"{PIECES} was given as {solver.ACCUMULATION_STEPS}, but {REFERENCE} {reference} with "
            f"{at_once} images at once (SOLVER.IMS_PER_BATCH) makes it {pieces}: change the latter instead"
        )
    logger.info("a step is %d images, as %s says: %d times %d", reference, REFERENCE, pieces, at_once)
    solver.IMS_PER_BATCH, solver.ACCUMULATION_STEPS = reference, pieces


def _cannot_be_made_up(reference: int, at_once: int) -> str:
    """What to say of a step that so many images at once do not divide, with the nearest that would do."""
    processes = world_size()
    fitting = [n for n in range(processes, reference + 1, processes) if reference % n == 0]
    if not fitting:
        return f"{REFERENCE} is {reference}: {processes} processes cannot share that evenly"
    nearest = sorted(sorted(fitting, key=lambda n: abs(n - at_once))[:2])
    return (
        f"{REFERENCE} {reference} cannot be made up of {at_once} images at once on {processes} processes: "
        f"SOLVER.IMS_PER_BATCH can be {' or '.join(map(str, nearest))}"
    )


def _apply_epochs(cfg: CfgNode, typed_keys: Collection[str], datasets: Datasets | None) -> None:
    solver = cfg.SOLVER
    if solver.EPOCHS < 0:
        raise ValueError(f"{EPOCHS} is {solver.EPOCHS}; it must not be negative (0: as SOLVER.MAX_ITER says)")
    typed = [key for key in STEP_KEYS if key in typed_keys]
    if solver.EPOCHS and EPOCHS in typed_keys and typed:
        raise ValueError(f"{EPOCHS} and {' and '.join(typed)} were given, but one decides the other")
    if solver.EPOCHS and "SOLVER.MAX_ITER" in typed:
        logger.info("%s %g of the config has no effect: SOLVER.MAX_ITER was given", EPOCHS, solver.EPOCHS)
        solver.EPOCHS = 0.0
    if not solver.EPOCHS:
        return
    images = expected_epoch_size(cfg, datasets)
    steps = math.ceil(solver.EPOCHS * images / solver.IMS_PER_BATCH)
    logger.info(
        "%g epochs of %.6g images, %d a step: SOLVER.MAX_ITER is %d",
        *(solver.EPOCHS, images, solver.IMS_PER_BATCH, steps),
    )
    set_max_iter(solver, steps, scale_steps="SOLVER.STEPS" not in typed)


def set_max_iter(solver: CfgNode, steps: int, *, scale_steps: bool = True) -> None:
    """Make a run `steps` long; the rate falls at the same shares of it as before (`scale_steps`)."""
    if scale_steps:
        solver.STEPS = tuple(round(step * steps / max(solver.MAX_ITER, 1)) for step in solver.STEPS)
    solver.MAX_ITER = steps
