"""More objects than queries: some have none to learn from, which training tells."""

import logging

from mask2former.engine.trainer import Hook, Trainer
from mask2former.utils.comm import gather_objects, is_main_process

logger = logging.getLogger(__name__)

KEY = "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES"


class QueryOverflowHook(Hook):
    """Warns at the first image with more objects than queries, and sums up at the end.

    Of several processes the main one warns, of an image of its own; the sum is that of all.
    """

    def __init__(self, num_queries: int) -> None:
        self.num_queries = num_queries
        self.seen = self.crowded = self.most = 0

    def after_step(self, trainer: Trainer) -> None:
        """Count the step's images."""
        assert trainer.last is not None
        for sample in trainer.last.batch:
            objects = len(sample["instances"])
            self.seen += 1
            if objects > self.num_queries:
                self._warn(str(sample.get("file_name")), objects)
                self.crowded += 1
            self.most = max(self.most, objects)

    def after_train(self, trainer: Trainer) -> None:
        """Tell how many there were in all processes."""
        counts = gather_objects((self.seen, self.crowded, self.most))
        seen, crowded = (sum(count[i] for count in counts) for i in (0, 1))
        if crowded:
            logger.warning(
                "%d of %d training samples had more objects than the %d queries, at most %d (%s)",
                *(crowded, seen, self.num_queries, max(count[2] for count in counts), KEY),
            )

    def _warn(self, file_name: str, objects: int) -> None:
        if not self.crowded and is_main_process():
            logger.warning(
                "%s shows %d objects to %d queries: each step leaves %d of them out. Raise %s",
                *(file_name, objects, self.num_queries, objects - self.num_queries, KEY),
            )
