"""Our one mapper behind Detectron2's interface, also under the names that existing scripts import.

Augmentations draw from numpy's global generator, which Detectron2's loader seeds in each of its workers.
"""

from typing import Any

import numpy as np

from mask2former.config import with_values
from mask2former.data.catalog import Metadata, Record
from mask2former.data.mapper import TrainMapper, build_test_mapper, build_train_mapper
from mask2former.detectron2_host.seam import instances_to_detectron2
from mask2former.engine.setup.dataset_facts import dataset_metadata


class DatasetMapper:
    """`mapper=DatasetMapper(cfg)` for `build_detection_train_loader`, `(cfg, False)` for the test loader.

    Args:
        cfg: its INPUT keys and the first dataset of DATASETS.TRAIN decide.
        is_train: read the ground truth and augment; otherwise resize for testing.

    Raises:
        ValueError: INPUT.DATASET_MAPPER_NAME is not known.
    """

    name: str | None = None  # of the mapper; None: as INPUT.DATASET_MAPPER_NAME says

    def __init__(self, cfg: Any, is_train: bool = True) -> None:
        if self.name is not None:
            cfg = with_values(cfg, {"INPUT.DATASET_MAPPER_NAME": self.name}, type(self).__name__)
        self._mapper = _train_mapper(cfg) if is_train else build_test_mapper(cfg)

    def __call__(self, record: Record) -> dict[str, Any]:
        """What the model takes of a record, and what else the record tells but for its `annotations`.

        Targets are Detectron2's `Instances` with `BitMasks` and `Boxes`.

        Raises:
            DatasetError: the record is broken; the message names the file, the image id and the value.
        """
        if not isinstance(self._mapper, TrainMapper):
            return self._mapper(record)
        sample = self._mapper(record, int(np.random.randint(np.iinfo(np.int64).max)))
        kept = {key: value for key, value in record.items() if key != "annotations"}
        return {**kept, **sample, "instances": instances_to_detectron2(sample["instances"])}


def _train_mapper(cfg: Any) -> TrainMapper:
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty: which classes are there to train on?")
    return build_train_mapper(cfg, _training_metadata(cfg))


def _training_metadata(cfg: Any) -> Metadata:
    """What is known of the classes; where the dataset names none, they are as many as the model's.

    A user's COCO file tells its classes when it is read, which Detectron2's loader does after this.
    """
    unnamed = [str(number) for number in range(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)]
    facts = {"thing_classes": unnamed, "stuff_classes": unnamed, **dataset_metadata(cfg)}
    return Metadata(cfg.DATASETS.TRAIN[0]).set(**facts)


class COCOInstanceNewBaselineDatasetMapper(DatasetMapper):
    """COCO's instances under large-scale jitter."""

    name = "coco_instance_lsj"


class COCOPanopticNewBaselineDatasetMapper(DatasetMapper):
    """Panoptic segments under large-scale jitter."""

    name = "coco_panoptic_lsj"


class MaskFormerInstanceDatasetMapper(DatasetMapper):
    """Instances, resized by the shorter side and cropped."""

    name = "mask_former_instance"


class MaskFormerPanopticDatasetMapper(DatasetMapper):
    """Panoptic segments, resized by the shorter side and cropped."""

    name = "mask_former_panoptic"


class MaskFormerSemanticDatasetMapper(DatasetMapper):
    """A segment a class, resized by the shorter side and cropped."""

    name = "mask_former_semantic"
