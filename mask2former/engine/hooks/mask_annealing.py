"""The removal of EoMT's attention masks in the course of training."""

from typing import Any

from torch import nn

from mask2former.engine.trainer import Hook, Trainer
from mask2former.modeling.eomt.head import EomtHead
from mask2former.modeling.eomt.options import ARCHITECTURE, Annealing, build_annealing


class MaskAnnealing(Hook):
    """Before each step, set the probability that each block's queries are masked in it.

    Nothing is done for another model than EoMT, or without a schedule.
    """

    def __init__(self, cfg: Any) -> None:
        self.schedule = mask_schedule(cfg)

    def before_train(self, trainer: Trainer) -> None:
        anneal_masks(trainer.plain_model, self.schedule, trainer.done)

    def after_step(self, trainer: Trainer) -> None:
        anneal_masks(trainer.plain_model, self.schedule, trainer.done)


def mask_schedule(cfg: Any) -> Annealing | None:
    """Return the schedule of a config; None if it is of another model than EoMT, or its masks stay."""
    return build_annealing(cfg) if cfg.MODEL.META_ARCHITECTURE == ARCHITECTURE else None


def anneal_masks(model: nn.Module, schedule: Annealing | None, step: int) -> None:
    """Set the probabilities of `model`, which has no wrapper, for training step `step`, from 0."""
    if schedule is None:
        return
    head = model.get_submodule("sem_seg_head")
    assert isinstance(head, EomtHead)
    head.set_probabilities(schedule.probabilities(step))
