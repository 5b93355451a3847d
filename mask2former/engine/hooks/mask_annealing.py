"""The removal of EoMT's attention masks in the course of training."""

from mask2former.engine.trainer import Hook, Trainer
from mask2former.modeling.eomt.head import EomtHead
from mask2former.modeling.eomt.options import Annealing


class MaskAnnealing(Hook):
    """Before each step, set the probability that each block's queries are masked in it."""

    def __init__(self, schedule: Annealing) -> None:
        self.schedule = schedule

    def before_train(self, trainer: Trainer) -> None:
        self._set(trainer)

    def after_step(self, trainer: Trainer) -> None:
        self._set(trainer)

    def _set(self, trainer: Trainer) -> None:
        head = trainer.plain_model.get_submodule("sem_seg_head")
        assert isinstance(head, EomtHead)
        head.set_probabilities(self.schedule.probabilities(trainer.done))
