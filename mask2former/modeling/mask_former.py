"""The meta-architecture: normalize and pad, backbone, head, then losses or results.

Shapes: `B` images, `K` classes, `N` targets of an image, `H, W` the padded image's sides, `h, w` an image's
own.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mask2former.modeling.loss.criterion import SetCriterion
from mask2former.modeling.postprocessing.inference import MIB, TASKS, InferenceOptions, infer, infer_views
from mask2former.modeling.postprocessing.semantic import View
from mask2former.modeling.postprocessing.tiles import Sizes
from mask2former.modeling.predictions import Predictions
from mask2former.structures import Instances, ShapeSpec
from mask2former.utils.registry import BACKBONE, META_ARCH, SEM_SEG_HEADS, find_builder

Inputs = Sequence[Mapping[str, Any]]


class MaskFormer(nn.Module):
    """Mask2Former (paper §3): one set of mask predictions, from which every segmentation task is read.

    Called with a list of dicts, one an image: "image" (3, h, w), RGB in 0..255; optionally "height" and
    "width" of the result (default h, w); in training "instances" and optionally "seed" for the image's random
    points.

    Args:
        backbone: normalized images (B, 3, H, W) -> maps by name.
        sem_seg_head: maps by name -> predictions.
        pixel_mean, pixel_std: of each channel, in 0..255.
        size_divisibility: batches are padded at the right and bottom to a multiple of it.

    Attributes:
        precision: the type in which the network predicts (not: trains); see `set_precision`.

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
        criterion: SetCriterion,
        inference: InferenceOptions,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisibility: int = 32,
    ) -> None:
        super().__init__()
        _check_range("MODEL.MASK_FORMER.THING_IDS", inference.thing_ids, criterion.num_classes)
        if size_divisibility < 1 or len(pixel_mean) != len(pixel_std) or min(pixel_std) <= 0:
            raise ValueError(
                f"MODEL.MASK_FORMER.SIZE_DIVISIBILITY must be positive, not {size_divisibility}; "
                "MODEL.PIXEL_MEAN and PIXEL_STD need a value a channel, the latter positive, "
                f"not {pixel_mean} and {pixel_std}"
            )
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.criterion = criterion
        self.inference = inference
        self.size_divisibility = size_divisibility
        self.precision = torch.float32
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Which of "semantic", "instance" and "panoptic" the results hold."""
        return self.inference.tasks

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.pixel_mean.device

    def network(self, images: Tensor) -> Predictions:
        """Predict from normalized, padded images (B, 3, H, W); the control flow depends on shapes alone."""
        return self.sem_seg_head(self.backbone(images))

    def forward(self, batched_inputs: Inputs) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Weighted losses by name in training, else the results of `predict`."""
        return self.losses(batched_inputs) if self.training else self.predict(batched_inputs)

    def losses(self, batched_inputs: Inputs) -> dict[str, Tensor]:
        """The weighted losses of a batch with targets; seeds count if every image has one.

        Raises:
            ValueError: an image or its targets do not fit; the message names the file.
        """
        images = self._images(batched_inputs)
        targets = [self._targets(inputs) for inputs in batched_inputs]
        seeds = [inputs["seed"] for inputs in batched_inputs if "seed" in inputs]
        height, width = images.shape[-2:]
        return self.criterion(
            self.network(images), targets, (height, width), seeds if len(seeds) == len(targets) else None
        )

    @torch.no_grad()
    def predict(self, batched_inputs: Inputs, *, compact: bool = False) -> list[dict[str, Any]]:
        """The results of each image for the tasks that are on.

        Returns:
            One dict an image: "sem_seg" (K, height, width) float scores; "panoptic_seg", a map (height,
            width) int32 of ids with a list of {"id", "isthing", "category_id"}; "instances" with masks (N,
            height, width). With `compact`, what takes little memory and time at any size: instead of scores
            a "label_map" (height, width) int32 of classes, and masks as `RunLengthMasks`.

        Raises:
            ValueError: an image does not fit; the message names the file.
        """
        return [
            infer(view.class_logits, view.mask_logits, view.sizes, self.inference, compact=compact)
            for view in self._views(batched_inputs)
        ]

    @torch.no_grad()
    def predict_views(
        self, batched_inputs: Inputs, *, mirror: bool, compact: bool = False
    ) -> list[dict[str, Any]]:
        """Semantic results, averaged over the views of each image.

        Args:
            batched_inputs: as for `predict`, but instead of "image" a list "views" of such, and always with
                "height" and "width".
            mirror: average over each view and its mirror image.
            compact: as for `predict`.

        Raises:
            ValueError: an image does not fit; the message names the file.
        """
        return [self._average(inputs, mirror, compact) for inputs in batched_inputs]

    def _average(self, inputs: Mapping[str, Any], mirror: bool, compact: bool) -> dict[str, Any]:
        """The averaged result of one image; views go through the network one by one."""
        variants = list(product(inputs["views"], (False, True) if mirror else (False,)))

        def views() -> Iterator[View]:
            for image, mirrored in variants:
                shown = {**inputs, "image": image.flip(-1) if mirrored else image}
                (view,) = self._views([shown])
                yield view._replace(mirrored=mirrored)

        pixels = [image[0].numel() for image, _ in variants]
        return infer_views(views(), pixels, self.inference, compact=compact)

    def _views(self, batched_inputs: Inputs) -> list[View]:
        """The last predictions of each image, in float32."""
        images = self._images(batched_inputs)
        with self._autocast():
            predictions = self.network(images)
        class_logits = predictions.layers[-1].class_logits.float()
        mask_logits = predictions.mask_logits()
        padded = (images.shape[2], images.shape[3])
        return [
            View(classes, masks, _sizes(inputs, padded))
            for classes, masks, inputs in zip(class_logits, mask_logits, batched_inputs, strict=True)
        ]

    def _autocast(self) -> AbstractContextManager[None]:
        """What the network predicts under; in float32 it is left to the caller."""
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.precision)

    def _images(self, batched_inputs: Inputs) -> Tensor:
        """Normalized images in one batch (B, 3, H, W), zero where padded."""
        for inputs in batched_inputs:
            shape = inputs["image"].shape
            if len(shape) != 3 or shape[0] != len(self.pixel_mean):
                raise ValueError(
                    f"{_name(inputs)}: an image must be ({len(self.pixel_mean)}, h, w), not {tuple(shape)}"
                )
        sides = torch.tensor([inputs["image"].shape[1:] for inputs in batched_inputs]).amax(0)
        height, width = (-(-int(side) // self.size_divisibility) * self.size_divisibility for side in sides)
        images = []
        for inputs in batched_inputs:
            image = (inputs["image"].to(self.pixel_mean) - self.pixel_mean) / self.pixel_std
            images.append(F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])))
        return torch.stack(images)

    def _targets(self, inputs: Mapping[str, Any]) -> Instances:
        """The targets of an image, checked and on the model's device."""
        if "instances" not in inputs:
            raise ValueError(f'{_name(inputs)}: training needs "instances" beside the image')
        targets = inputs["instances"]
        if targets.gt_masks.shape[1:] != inputs["image"].shape[1:]:
            raise ValueError(
                f"{_name(inputs)}: masks are {tuple(targets.gt_masks.shape)}, but the image is "
                f"{tuple(inputs['image'].shape)}"
            )
        _check_range(f"{_name(inputs)}: gt_classes", targets.gt_classes.tolist(), self.criterion.num_classes)
        return targets.to(self.device)


def _name(inputs: Mapping[str, Any]) -> str:
    return str(inputs.get("file_name", "an image of the batch"))


def _sizes(inputs: Mapping[str, Any], padded: tuple[int, int]) -> Sizes:
    height, width = inputs["image"].shape[1:]
    return Sizes(padded, (height, width), (inputs.get("height", height), inputs.get("width", width)))


def _check_range(what: str, classes: Sequence[int], num_classes: int) -> None:
    wrong = sorted({label for label in classes if not 0 <= label < num_classes})
    if wrong:
        raise ValueError(
            f"{what}: {wrong} is outside the model's {num_classes} classes, 0 to {num_classes - 1} "
            "(MODEL.SEM_SEG_HEAD.NUM_CLASSES)"
        )


@META_ARCH.register_as("MaskFormer")
def build_mask_former(cfg: Any) -> MaskFormer:
    """The model of a config, on torch's default device."""
    return MaskFormer(**mask_former_parts(cfg))


def mask_former_parts(cfg: Any) -> dict[str, Any]:
    """What a config makes a `MaskFormer` of: its arguments by name."""
    model = cfg.MODEL
    build_backbone = find_builder(BACKBONE, model.BACKBONE.NAME, "MODEL.BACKBONE.NAME")
    backbone = build_backbone(cfg, ShapeSpec(channels=len(model.PIXEL_MEAN)))
    build_head = find_builder(SEM_SEG_HEADS, model.SEM_SEG_HEAD.NAME, "MODEL.SEM_SEG_HEAD.NAME")
    return {
        "backbone": backbone,
        "sem_seg_head": build_head(cfg, backbone.output_shape()),
        "criterion": build_criterion(cfg),
        "inference": build_inference_options(cfg),
        "pixel_mean": model.PIXEL_MEAN,
        "pixel_std": model.PIXEL_STD,
        "size_divisibility": model.MASK_FORMER.SIZE_DIVISIBILITY,
    }


def build_criterion(cfg: Any) -> SetCriterion:
    """The loss of a config."""
    loss = cfg.MODEL.MASK_FORMER
    return SetCriterion(
        num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        class_weight=loss.CLASS_WEIGHT,
        mask_weight=loss.MASK_WEIGHT,
        dice_weight=loss.DICE_WEIGHT,
        no_object_weight=loss.NO_OBJECT_WEIGHT,
        num_points=loss.TRAIN_NUM_POINTS,
        oversample_ratio=loss.OVERSAMPLE_RATIO,
        importance_sample_ratio=loss.IMPORTANCE_SAMPLE_RATIO,
        deep_supervision=loss.DEEP_SUPERVISION,
    )


def build_inference_options(cfg: Any) -> InferenceOptions:
    """The tasks and thresholds of a config.

    Raises:
        ValueError: no task is on.
    """
    test = cfg.MODEL.MASK_FORMER.TEST
    return InferenceOptions(
        tasks=tuple(task for task in TASKS if test[f"{task.upper()}_ON"]),
        thing_ids=tuple(cfg.MODEL.MASK_FORMER.THING_IDS),
        object_mask_threshold=test.OBJECT_MASK_THRESHOLD,
        overlap_threshold=test.OVERLAP_THRESHOLD,
        max_instances=cfg.TEST.DETECTIONS_PER_IMAGE,
        resize_first=test.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE,
        memory_budget=test.MEMORY_BUDGET_MB * MIB,
    )
