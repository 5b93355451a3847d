"""Visualizations of training images with their targets and predictions: VIS_PERIOD.

Shapes: `H, W` the image's sides in pixels.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from mask2former.data.clips import first_frame
from mask2former.data.mapper import CHANNEL_ORDER
from mask2former.drawing.colors import class_colors
from mask2former.drawing.overlay import draw_regions, legible_scale
from mask2former.drawing.regions import Region, result_regions, shape_regions
from mask2former.drawing.shapes import mask_shape
from mask2former.engine.checkpoint.disk_space import write_errors_explained
from mask2former.engine.metrics_log import MetricsLog
from mask2former.engine.trainer import Hook, Trainer, is_due
from mask2former.utils.label_maps import Array

FOLDER = "images"
MIN_SCORE = 0.5  # of instances to draw


def predicted_regions(output: dict[str, Any], names: Sequence[str]) -> list[Region]:
    """Return the model's regions of one image: panoptic if there are, else instances, else classes."""
    task: str
    result: Any
    if "panoptic_seg" in output:
        ids, segments = output["panoptic_seg"]
        task, result = "panoptic", (ids.cpu().numpy(), segments)
    elif "instances" in output:
        instances = output["instances"]
        task, result = "instance", instances[instances.scores >= MIN_SCORE]
    else:
        task, result = "semantic", output["sem_seg"].argmax(0).cpu().numpy()
    return result_regions(task, result, names, class_colors(len(names)))


def draw_sample(model: nn.Module, sample: dict[str, Any], names: Sequence[str], image_format: str) -> Array:
    """Draw the image with its targets, and to the right with the predictions: (s H, 2 s W, 3) uint8 RGB.

    A tiny image is drawn at scale s, others at 1. `image_format`, "RGB" or "BGR", is that of the sample.
    """
    sample = first_frame(sample)  # a clip shows no more than that
    image = sample["image"].permute(1, 2, 0).byte().cpu().numpy()[..., CHANNEL_ORDER[image_format]]
    model.eval()
    with torch.inference_mode():
        output = model([{"image": sample["image"]}])[0]
    model.train()
    targets = sample["instances"]
    shapes = [mask_shape(mask.cpu().numpy()) for mask in targets.gt_masks]
    true_regions = shape_regions(shapes, targets.gt_classes.tolist(), names, class_colors(len(names)))
    both = (true_regions, predicted_regions(output, names))
    scale = legible_scale(image)
    return np.concatenate([draw_regions(image, regions, scale) for regions in both], axis=1)


class VisualizationHook(Hook):
    """Visualization of one image every `period` steps (0: never), to a file and to TensorBoard.

    `whole` returns a model that rank 0 can run alone; every rank calls it.
    """

    def __init__(
        self,
        *,
        period: int,
        names: Sequence[str],
        image_format: str,
        folder: Path,
        metrics: MetricsLog | None,
        whole: Callable[[nn.Module], nn.Module] = lambda model: model,
    ) -> None:
        self.period, self.names, self.image_format = period, names, image_format
        self.folder, self.metrics, self.whole = folder / FOLDER, metrics, whole

    def after_step(self, trainer: Trainer) -> None:
        if not is_due(trainer.done, self.period):
            return
        model = self.whole(trainer.plain_model)
        if self.metrics is None:
            return
        assert trainer.last is not None
        drawn = draw_sample(model, trainer.last.batch[0], self.names, self.image_format)
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"step_{trainer.done - 1:07d}.jpg"
        with write_errors_explained(path):
            Image.fromarray(drawn).save(path)
        self.metrics.write_image(trainer.done - 1, "target, prediction", drawn)
