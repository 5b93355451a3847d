"""Our mapper with Detectron2's interface, also under the names that existing scripts import.

Augmentations are seeded by numpy's global generator, which Detectron2's loader seeds in each of its workers.
"""

from typing import Any

import numpy as np

from mask2former.config import with_values
from mask2former.data.catalog import Metadata, Record
from mask2former.data.mapper import TrainMapper, build_test_mapper, build_train_mapper
from mask2former.detectron2_host.type_conversion import instances_to_detectron2
from mask2former.engine.setup.dataset_facts import dataset_metadata


class DatasetMapper:
    """Mapper for `build_detection_train_loader` or, with `is_train=False`, `build_detection_test_loader`.

    Args:
        cfg: its INPUT keys and the first dataset of DATASETS.TRAIN are read.
        is_train: read the ground truth and augment; otherwise resize for testing.

    Raises:
        ValueError: INPUT.DATASET_MAPPER_NAME is unknown, DATASETS.TRAIN is empty, or INPUT.COPY_PASTE is on.
    """

    name: str | None = None  # replaces INPUT.DATASET_MAPPER_NAME

    def __init__(self, cfg: Any, is_train: bool = True) -> None:
        if self.name is not None:
            cfg = with_values(cfg, {"INPUT.DATASET_MAPPER_NAME": self.name}, type(self).__name__)
        self._mapper = _train_mapper(cfg) if is_train else build_test_mapper(cfg)

    def __call__(self, record: Record) -> dict[str, Any]:
        """Return the model's input, with all entries of the record except its `annotations`.

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
    """Build the mapper of DATASETS.TRAIN; if that has no class names, the model's class count decides."""
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty; the mapper needs a dataset that defines the classes")
    if cfg.INPUT.COPY_PASTE.PROBABILITY:
        raise ValueError(
            "INPUT.COPY_PASTE needs all records of the dataset, which Detectron2's loader gives no mapper; "
            "set INPUT.COPY_PASTE.PROBABILITY to 0, or use the project's Trainer"
        )
    unnamed = [str(number) for number in range(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)]
    facts = {"thing_classes": unnamed, "stuff_classes": unnamed, **dataset_metadata(cfg)}
    return build_train_mapper(cfg, Metadata(cfg.DATASETS.TRAIN[0]).set(**facts))


class COCOInstanceNewBaselineDatasetMapper(DatasetMapper):
    """Mapper of COCO instances with large-scale jitter."""

    name = "coco_instance_lsj"


class COCOPanopticNewBaselineDatasetMapper(DatasetMapper):
    """Mapper of panoptic segments with large-scale jitter."""

    name = "coco_panoptic_lsj"


class DETRPanopticDatasetMapper(DatasetMapper):
    """Mapper of panoptic segments, with the shorter side resized and DETR's crops."""

    name = "detr_panoptic"


class MaskFormerInstanceDatasetMapper(DatasetMapper):
    """Mapper of instances, with the shorter side resized and a crop."""

    name = "mask_former_instance"


class MaskFormerPanopticDatasetMapper(DatasetMapper):
    """Mapper of panoptic segments, with the shorter side resized and a crop."""

    name = "mask_former_panoptic"


class MaskFormerSemanticDatasetMapper(DatasetMapper):
    """Mapper of one segment per class, with the shorter side resized and a crop."""

    name = "mask_former_semantic"
