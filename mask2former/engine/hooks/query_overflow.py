"""Warnings about training images with more objects than the model has queries."""

import logging
from collections.abc import Sequence

from mask2former.data.clips import first_frame
from mask2former.engine.trainer import Hook, Trainer
from mask2former.structures import Instances
from mask2former.utils.comm import gather_objects, is_main_process

logger = logging.getLogger(__name__)

KEY = "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES"


class QueryOverflowHook(Hook):
    """Warning at rank 0's first image with more objects than queries; counts of all ranks at the end.

    `class_ids` are the classes that share the queries; by default all do.
    """

    def __init__(self, num_queries: int, class_ids: Sequence[int] | None = None) -> None:
        self.num_queries, self.class_ids = num_queries, class_ids
        self.seen = self.overfull = self.most = 0

    def after_step(self, trainer: Trainer) -> None:
        assert trainer.last is not None
        for sample in trainer.last.batch:
            targets = sample["instances"]  # of a clip: the same tracks in each frame
            objects = self._count(targets if isinstance(targets, Instances) else targets[0])
            self.seen += 1
            self.most = max(self.most, objects)
            left_out = objects - self.num_queries
            if left_out > 0 and not self.overfull and is_main_process():
                logger.warning(
                    "%s has %d objects, but the model has %d queries: each step leaves out %d objects. "
                    "Raise %s",
                    *(first_frame(sample).get("file_name"), objects, self.num_queries, left_out, KEY),
                )
            self.overfull += left_out > 0

    def _count(self, instances: Instances) -> int:
        if self.class_ids is None:
            return len(instances)
        return sum(label in self.class_ids for label in instances.gt_classes.tolist())

    def after_train(self, trainer: Trainer) -> None:
        counts = gather_objects((self.seen, self.overfull, self.most))
        seen, overfull = (sum(count[i] for count in counts) for i in (0, 1))
        if overfull:
            logger.warning(
                "%d of %d training samples had more objects than the %d queries, at most %d (%s)",
                *(overfull, seen, self.num_queries, max(count[2] for count in counts), KEY),
            )
