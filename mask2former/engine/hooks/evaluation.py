"""Evaluation during and at the end of a run."""

from collections import OrderedDict
from collections.abc import Callable

from mask2former.engine.hooks.best import BestModel
from mask2former.engine.hooks.standard import flatten_results
from mask2former.engine.metrics_log import MetricsLog
from mask2former.engine.trainer import Hook, Trainer, is_due
from mask2former.evaluation.evaluator import Results
from mask2former.utils.comm import all_reduce_any, set_status


class EvaluationHook(Hook):
    """Evaluation every `period` steps (0: none) and at the end of the run; keeps the last results."""

    def __init__(
        self,
        period: int,
        evaluate: Callable[[], Results],
        metrics: MetricsLog | None,
        best: BestModel | None,
    ) -> None:
        self.period, self.evaluate, self.metrics, self.best = period, evaluate, metrics, best
        self.results: Results = OrderedDict()
        self._evaluated_step = -1

    def before_train(self, trainer: Trainer) -> None:
        """Repeat an evaluation in which the run was killed, after its checkpoint."""
        if all_reduce_any(self.metrics is not None and not self.metrics.has_results(trainer.done - 1)):
            self.after_step(trainer)
        elif self.best is not None:
            self.best.stop_if_due(trainer)

    def after_step(self, trainer: Trainer) -> None:
        """Evaluate when due, but not after the last step: see `after_train`."""
        if is_due(trainer.done, self.period) and trainer.done < trainer.max_iter:
            self._run(trainer)

    def after_train(self, trainer: Trainer) -> None:
        """Evaluate the final model, unless an evaluation has just ended the run."""
        if self._evaluated_step != trainer.done - 1:
            self._run(trainer)

    def _run(self, trainer: Trainer) -> None:
        iteration = self._evaluated_step = trainer.done - 1
        set_status(f"evaluating after step {iteration}")
        self.results = self.evaluate()
        values = flatten_results(self.results)
        if self.best is not None:  # the model is saved before the line: if killed between, both are repeated
            values |= self.best.update(trainer, values)
        if self.metrics is not None and values and not self.metrics.has_results(iteration):
            self.metrics.write(iteration, values)
        if self.best is not None:
            self.best.stop_if_due(trainer)
