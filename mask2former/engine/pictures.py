"""What the model makes of a training picture, beside what it should: VIS_PERIOD's pictures.

Letters: `H, W` the picture's sides in pixels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from mask2former.engine.metrics_log import MetricsLog
from mask2former.engine.trainer import Hook, Trainer, is_due
from mask2former.visualize import (
    Region,
    class_colours,
    draw_regions,
    instance_regions,
    panoptic_regions,
    semantic_regions,
)

FOLDER = "pictures"
LEAST_SCORE = 0.5  # of an instance that is drawn

Array = NDArray[Any]


def target_regions(sample: dict[str, Any], names: Sequence[str]) -> list[Region]:
    """The true objects of a training sample, the largest first."""
    targets, colours = sample["instances"], class_colours(len(names))
    regions = [
        Region(mask.cpu().numpy(), colours[label], names[label])
        for mask, label in zip(targets.gt_masks, targets.gt_classes.tolist(), strict=True)
    ]
    return sorted(regions, key=lambda region: -int(region.mask.sum()))


def predicted_regions(output: dict[str, Any], names: Sequence[str]) -> list[Region]:
    """The model's result for one picture: panoptic if it makes one, else instances, else classes."""
    colours = class_colours(len(names))
    if "panoptic_seg" in output:
        ids, segments = output["panoptic_seg"]
        return panoptic_regions(ids.cpu().numpy(), segments, names, colours)
    if "instances" in output:
        instances = output["instances"]
        return instance_regions(instances[instances.scores >= LEAST_SCORE], names, colours)
    return semantic_regions(output["sem_seg"].argmax(0).cpu().numpy(), names, colours)


def draw_sample(model: nn.Module, sample: dict[str, Any], names: Sequence[str]) -> Array:
    """The picture with its true objects, and to the right with the predicted ones: (H, 2W, 3) uint8."""
    picture = sample["image"].permute(1, 2, 0).byte().cpu().numpy()
    model.eval()
    with torch.inference_mode():
        output = model([{"image": sample["image"]}])[0]
    model.train()
    drawn = [draw_regions(picture, target_regions(sample, names))]
    drawn.append(draw_regions(picture, predicted_regions(output, names)))
    return np.concatenate(drawn, axis=1)


class PictureHook(Hook):
    """Every `period` steps (0: never), one of the step's pictures: to a file and to TensorBoard."""

    def __init__(self, period: int, names: Sequence[str], folder: Path, metrics: MetricsLog | None) -> None:
        self.period, self.names, self.folder, self.metrics = period, names, folder / FOLDER, metrics

    def after_step(self, trainer: Trainer) -> None:
        """Draw when due."""
        if self.metrics is None or not is_due(trainer.done, self.period):
            return
        assert trainer.last is not None
        drawn = draw_sample(trainer.plain_model, trainer.last.batch[0], self.names)
        self.folder.mkdir(exist_ok=True)
        Image.fromarray(drawn).save(self.folder / f"step_{trainer.done - 1:07d}.jpg")
        self.metrics.write_image(trainer.done - 1, "target, prediction", drawn)
