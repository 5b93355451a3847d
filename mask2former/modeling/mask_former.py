"""Mask2Former, from images to losses or results.

    images (B, 3, H, W)     normalized and padded to a common size
    -> backbone             feature maps by name, at strides 4 to 32
    -> sem_seg_head         pixel decoder: mask features and memory; transformer decoder: predictions
    -> criterion            weighted losses, in training
    -> post_process         semantic, instance and panoptic results, in evaluation

Shapes: `B` images, `K` classes, `N` targets of an image, `H, W` the padded image's sides, `h, w` those of an
image before padding.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mask2former.modeling.postprocessing.inference import (
    InferenceOptions,
    build_inference_options,
    post_process,
)
from mask2former.modeling.predictions import ImagePrediction, Predictions, Sizes
from mask2former.modeling.transformer_decoder.pilots import TrainingTargets
from mask2former.modeling.transformer_decoder.tasks import check_tasks, task_indices
from mask2former.structures import Instances, ShapeSpec
from mask2former.utils.messages import brief
from mask2former.utils.registry import BACKBONE, CRITERION, META_ARCH, SEM_SEG_HEADS, find_builder

Inputs = Sequence[Mapping[str, Any]]


class MaskFormer(nn.Module):
    """Mask2Former (paper §3): one set of mask predictions serves every segmentation task.

    Every meta-architecture of this project is this class with other parts, or a subclass with another
    `network`. The engine, `Predictor` and the tools use `losses`, `predict`, `predict_images`, `network`,
    `tasks`, `device`, `precision`, and the attributes `backbone`, `sem_seg_head`, `inference`, `num_classes`,
    `size_divisibility` and `pixel_mean`.

    The input is a list of dicts, one per image: "image" (3, h, w), RGB in 0..255; optionally "height" and
    "width" of the result (default h, w); in training "instances", and optionally "seed" for the image's
    random points, and for a model of several tasks (`trained_tasks`) "task", that of the targets.

    Args:
        criterion: predictions, targets, padded size (H, W), seeds -> weighted losses by name.
        pixel_mean, pixel_std: per channel, in 0..255.
        size_divisibility: batches are padded at the right and bottom to a multiple of it; 0: to the largest
            image alone.

    Attributes:
        precision: the type in which the network predicts (it does not affect training); see `set_precision`.

    Raises:
        ValueError: a class id, a mean or the divisibility is out of range.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        *,
        backbone: nn.Module,
        sem_seg_head: nn.Module,
        criterion: nn.Module,
        inference: InferenceOptions,
        num_classes: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisibility: int = 32,
    ) -> None:
        super().__init__()
        check_range("MODEL.MASK_FORMER.THING_IDS", inference.thing_ids, num_classes)
        if size_divisibility < 0 or len(pixel_mean) != len(pixel_std) or min(pixel_std) <= 0:
            raise ValueError(
                f"MODEL.MASK_FORMER.SIZE_DIVISIBILITY must not be negative, but is {size_divisibility}; "
                "MODEL.PIXEL_MEAN and PIXEL_STD need one value per channel, the latter positive, "
                f"not {pixel_mean} and {pixel_std}"
            )
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.criterion = criterion
        self.inference = inference
        self.num_classes = num_classes
        self.size_divisibility = max(size_divisibility, 1)
        self.precision = torch.float32
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, batched_inputs: Inputs) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Return weighted losses by name in training, else the results of `predict`."""
        return self.losses(batched_inputs) if self.training else self.predict(batched_inputs)

    def losses(self, batched_inputs: Inputs) -> dict[str, Tensor]:
        """Compute the weighted losses of a batch with targets; seeds count if every image has one.

        Raises:
            ValueError: an image or its targets do not fit; the message names the file.
        """
        images = self._images(batched_inputs)
        targets = [self._targets(inputs) for inputs in batched_inputs]
        seeds = [inputs["seed"] for inputs in batched_inputs if "seed" in inputs]
        padded = (images.shape[2], images.shape[3])
        seeded = seeds if len(seeds) == len(targets) else None
        told: dict[str, Any] = {}
        if getattr(self.sem_seg_head, "reads_targets", False):
            seeded = seeded or torch.randint(2**62, (len(targets),)).tolist()
            told["targets"] = TrainingTargets(targets, padded, seeded)
        if self.trained_tasks:
            told["tasks"] = task_indices(map(self._task, batched_inputs), self.device)[:, None]
        if told:
            predictions = self.sem_seg_head(self.backbone(images), **told)
        else:
            predictions = self.network(images, _sizes(batched_inputs))
        return self.criterion(predictions, targets, padded, seeded)

    @torch.no_grad()
    def predict(self, batched_inputs: Inputs, *, compact: bool = False) -> list[dict[str, Any]]:
        """Return the results of each image for the tasks that are on.

        Returns:
            One dict per image: "sem_seg" (K, height, width) float scores; "panoptic_seg", a map (height,
            width) int32 of ids with a list of {"id", "isthing", "category_id"}; "instances" with masks (N,
            height, width). If `compact`, results take little memory and time at any size: a "label_map"
            (height, width) int32 of classes in place of the scores, and masks as `RunLengthMasks`.

        Raises:
            ValueError: an image does not fit; the message names the file.
        """
        predictions = self.predict_images(batched_inputs)
        return [self.post_process(prediction, compact=compact) for prediction in predictions]

    def post_process(
        self, prediction: ImagePrediction, options: InferenceOptions | None = None, *, compact: bool = False
    ) -> dict[str, Any]:
        """Return the results of one image, as `predict`, with other `options` if they are given."""
        return post_process(prediction, options or self.inference, compact=compact)

    @torch.no_grad()
    def predict_images(self, batched_inputs: Inputs) -> list[ImagePrediction]:
        """Return the network's prediction for each image, before post-processing.

        It is the last one, unless `inference` names another layer.
        """
        predictions, sizes = self._predict_batch(batched_inputs)
        return predictions.of_images(sizes, self.inference.layer)

    def _predict_batch(self, batched_inputs: Inputs) -> tuple[Any, list[Sizes]]:
        """Return what the network predicts, in the model's precision, and the sizes of each image."""
        images = self._images(batched_inputs)
        with self._autocast():
            predictions = self.network(images, _sizes(batched_inputs))
        sizes = []
        for inputs, size in zip(batched_inputs, _sizes(batched_inputs), strict=True):
            output = (inputs.get("height", size[0]), inputs.get("width", size[1]))
            sizes.append(Sizes((images.shape[2], images.shape[3]), size, output))
        return predictions, sizes

    def _autocast(self) -> AbstractContextManager[Any]:
        """Return the context of prediction in the model's precision; in float32 it is left to the caller."""
        in_float32 = self.precision == torch.float32
        return nullcontext() if in_float32 else torch.autocast(self.device.type, self.precision)

    def network(self, images: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> Predictions:
        """Predict from normalized, padded images (B, 3, H, W); the control flow depends on shapes alone.

        `sizes` (h, w) are those of the images before padding, which this network does not need. If it is
        trained for several tasks, the decoder reads the images for each that is on.
        """
        if not self.trained_tasks:
            return self.sem_seg_head(self.backbone(images))
        tasks = task_indices(self.tasks, self.device).expand(len(images), -1)
        return replace(self.sem_seg_head(self.backbone(images), tasks=tasks), tasks=self.tasks)

    @property
    def trained_tasks(self) -> tuple[str, ...]:
        """Return the tasks that the model is told, SOLVER.TASKS; none if one prediction serves all."""
        return getattr(self.sem_seg_head, "trained_tasks", ())

    def input_shape(self, size: tuple[int, int]) -> tuple[int, ...]:
        """Return the shape (B, 3, H, W) in which the network sees one image of `size` (h, w)."""
        return (1, len(self.pixel_mean), *self._padded_size([size]))

    @property
    def tasks(self) -> tuple[str, ...]:
        """Return the tasks that are on, among "semantic", "instance" and "panoptic"."""
        return self.inference.tasks

    @property
    def device(self) -> torch.device:
        """Return the device of the model."""
        return self.pixel_mean.device

    def _images(self, batched_inputs: Inputs) -> Tensor:
        """Return normalized images in one batch (B, 3, H, W), padded."""
        for inputs in batched_inputs:
            shape = inputs["image"].shape
            if len(shape) != 3 or shape[0] != len(self.pixel_mean):
                raise ValueError(
                    f"{_name(inputs)}: an image must be ({len(self.pixel_mean)}, h, w), not {tuple(shape)}"
                )
        size = self._padded_size(_sizes(batched_inputs))
        images = []
        for inputs in batched_inputs:
            image = (inputs["image"].to(self.pixel_mean) - self.pixel_mean) / self.pixel_std
            images.append(self._pad(image, size))
        return torch.stack(images)

    def _pad(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Pad a normalized image (3, h, w) with zeros, the mean color, to `size`."""
        return F.pad(image, (0, size[1] - image.shape[2], 0, size[0] - image.shape[1]))

    def _padded_size(self, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """Return the sides (H, W) that a batch of images of these sizes (h, w) is padded to."""
        height, width = (
            -(-max(sides) // self.size_divisibility) * self.size_divisibility
            for sides in zip(*sizes, strict=True)
        )
        return height, width

    def _targets(self, inputs: Mapping[str, Any]) -> Instances:
        """Return the targets of an image, checked, on the model's device."""
        if "instances" not in inputs:
            raise ValueError(f'{_name(inputs)}: training needs "instances" beside the image')
        targets = inputs["instances"]
        check_masks(inputs)
        check_range(f"{_name(inputs)}: gt_classes", targets.gt_classes.tolist(), self.num_classes)
        return targets.to(self.device)

    def _task(self, inputs: Mapping[str, Any]) -> str:
        """Return the task of an image's targets."""
        task = inputs.get("task")
        if task not in self.trained_tasks:
            given = f'its "task" is {brief(task)}' if "task" in inputs else 'it has no "task"'
            raise ValueError(
                f"{_name(inputs)}: {given}; training for SOLVER.TASKS needs one of "
                f"{', '.join(self.trained_tasks)}"
            )
        return str(task)


def _sizes(batched_inputs: Inputs) -> list[tuple[int, int]]:
    """Return the sides (h, w) of each image before padding."""
    return [(inputs["image"].shape[1], inputs["image"].shape[2]) for inputs in batched_inputs]


def _name(inputs: Mapping[str, Any]) -> str:
    return str(inputs.get("file_name", "an image of the batch"))


def check_masks(inputs: Mapping[str, Any]) -> None:
    """Raise ValueError if the masks of an image's "instances" are not of its size."""
    masks, image = inputs["instances"].gt_masks, inputs["image"]
    if masks.shape[1:] != image.shape[1:]:
        raise ValueError(
            f"{_name(inputs)}: masks are {tuple(masks.shape)}, but the image is {tuple(image.shape)}"
        )


def check_range(what: str, classes: Sequence[int], num_classes: int) -> None:
    """Raise ValueError if one of `classes` is none of the model's; the message begins with `what`."""
    wrong = sorted({label for label in classes if not 0 <= label < num_classes})
    if wrong:
        raise ValueError(
            f"{what}: {wrong} is outside the model's {num_classes} classes, 0 to {num_classes - 1} "
            "(MODEL.SEM_SEG_HEAD.NUM_CLASSES)"
        )


@META_ARCH.register_as("MaskFormer")
def build_mask_former(cfg: Any) -> MaskFormer:
    """Build the model of a config on torch's default device.

    Raises:
        ValueError: a part is unknown, or the head does not predict masks.
    """
    parts = mask_former_parts(cfg)
    if getattr(parts["sem_seg_head"], "per_pixel", False):
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.NAME {cfg.MODEL.SEM_SEG_HEAD.NAME} predicts no masks; it needs "
            "MODEL.META_ARCHITECTURE SemanticSegmentor, not MaskFormer"
        )
    return MaskFormer(**parts)


def mask_former_parts(cfg: Any) -> dict[str, Any]:
    """Build the arguments of `MaskFormer` from a config; raise ValueError if a part is wrong."""
    model = cfg.MODEL
    build_backbone = find_builder(BACKBONE, model.BACKBONE.NAME, "MODEL.BACKBONE.NAME")
    build_head = find_builder(SEM_SEG_HEADS, model.SEM_SEG_HEAD.NAME, "MODEL.SEM_SEG_HEAD.NAME")
    build_criterion = find_builder(
        CRITERION, model.MASK_FORMER.CRITERION_NAME, "MODEL.MASK_FORMER.CRITERION_NAME"
    )
    backbone = build_backbone(cfg, ShapeSpec(channels=len(model.PIXEL_MEAN)))
    head = build_head(cfg, backbone.output_shape())
    check_tasks(cfg, getattr(head, "trained_tasks", ()))
    return {
        "backbone": backbone,
        "sem_seg_head": head,
        "criterion": build_criterion(cfg),
        "inference": build_inference_options(cfg),
        "num_classes": model.SEM_SEG_HEAD.NUM_CLASSES,
        "pixel_mean": model.PIXEL_MEAN,
        "pixel_std": model.PIXEL_STD,
        "size_divisibility": model.MASK_FORMER.SIZE_DIVISIBILITY,
    }
