"""The best model of a run by one metric (TEST.BEST_METRIC), and the end of a run that has stopped improving.

The metrics file is the state: each line of results has the best value so far, under "best/METRIC". A resumed
run reads it there, so that it agrees with the lines that it keeps.
"""

import logging
import math
from typing import Any

from mask2former.engine.checkpoint.run_folder import BEST, RunFolder
from mask2former.engine.metrics_log import MetricsLog
from mask2former.engine.trainer import Trainer
from mask2former.utils.comm import broadcast_object

logger = logging.getLogger(__name__)


class BestModel:
    """Highest value of a metric, the model that had it, and the number of evaluations since then.

    With a `patience` above 0 the run ends after so many evaluations without a new best. Every process must
    call the methods, and has the same values.
    """

    def __init__(
        self,
        *,
        metric: str,
        patience: int,
        folder: RunFolder,
        extra: dict[str, Any],
        metrics: MetricsLog | None,
    ) -> None:
        self.metric, self.patience, self.folder, self.extra = metric, patience, folder, extra
        self.best, self.best_step, self.step, self.waited = -math.inf, -1, -1, 0
        for step, value in broadcast_object(metrics and metrics.earlier(self.name)) or []:
            self._count(step, -math.inf if value is None else value)

    @property
    def name(self) -> str:
        """Return the name of the best value so far among the metrics."""
        return f"best/{self.metric}"

    def update(self, trainer: Trainer, results: dict[str, float]) -> dict[str, float]:
        """Take in the main process's results, and save the model if it is the best; return what to log.

        Raises:
            ValueError: the metric is not among the results.
        """
        results, step = broadcast_object(results), trainer.done - 1
        if self.metric not in results:
            known = ", ".join(name for name in results if "-" not in name)  # the others are of one class
            raise ValueError(
                f"TEST.BEST_METRIC is '{self.metric}'; this run's metrics are: {known or 'none'}"
            )
        if step > self.step and self._count(step, results[self.metric]):
            self._save(trainer)
        return {self.name: self.best}

    def stop_if_due(self, trainer: Trainer) -> None:
        """End the run if `patience` evaluations have not improved the metric."""
        if 0 < self.patience <= self.waited and trainer.done < trainer.max_iter:
            logger.info(
                "training ends after step %d of %d: %s has not improved in %d evaluations "
                "(SOLVER.EARLY_STOPPING). Its best is %g, of step %d",
                *(trainer.done - 1, trainer.max_iter, self.metric, self.waited, self.best, self.best_step),
            )
            trainer.max_iter = trainer.done

    def _count(self, step: int, value: float) -> bool:
        """Count an evaluation, and return True if it is the best; NaN is never the best."""
        improved = value > self.best
        self.step, self.waited = step, 0 if improved else self.waited + 1
        if improved:
            self.best, self.best_step = value, step
        return improved

    def _save(self, trainer: Trainer) -> None:
        with trainer.average.in_model():
            content = {
                "model": trainer.plain_model.state_dict(),
                "iteration": self.step,
                "best": {self.metric: self.best},
            }
            self.folder.save(BEST, {**content, **self.extra})
