"""The network's predictions: for a batch and every decoder layer, and for one image after the last layer.

A model that is trained for several tasks (`transformer_decoder.tasks`) predicts each with queries of its own:
those of its first task, then those of the next. They count as one set of queries until results are made.

Dense mask logits are large (`Q` maps for each image and layer) and most are never needed: the loss reads them
at points and for matched queries, inference reads the last layer. So they are computed on demand.

Shapes: `B` images, `Q` queries, `K` classes, `C` channels, `H, W` the padded image's sides, `h, w` those of
the mask logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

PIXEL_STRIDE = 4  # of the class logits of per-pixel models


class Sizes(NamedTuple):
    """(height, width) in pixels of the padded image, the image in its top left corner, and the result."""

    padded: tuple[int, int]
    image: tuple[int, int]
    output: tuple[int, int]


class ImagePrediction(NamedTuple):
    """The prediction for one image, in float32.

    Class probabilities are (Q, K+1), the last class is "no object"; mask logits are (Q, h, w). `flipped` is
    True if the network saw the image mirrored left to right (test-time augmentation).

    If `per_pixel`, mask logits are the logits of classes, Q = K, and compared with each other; each query has
    its class with probability 1. `all_compete` asks for K-Net's panoptic rules; see `panoptic_segments`.

    DETR also predicts `boxes` (Q, 4), corners (left, top, right, bottom) in [0, 1] of the image. Embeddings
    (Q, C) describe the objects of the queries; tracking compares those of frames.

    `tasks`, if there are any, share the queries equally, in this order; see `of_task`.
    """

    probabilities: Tensor
    mask_logits: Tensor
    sizes: Sizes
    flipped: bool = False
    per_pixel: bool = False
    all_compete: bool = False
    boxes: Tensor | None = None
    embeddings: Tensor | None = None
    tasks: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Return K."""
        return self.probabilities.shape[1] - 1

    def queries_of_task(self, task: str) -> range:
        """Return the queries of a task: all, unless tasks have their own.

        Raises:
            ValueError: other tasks have queries, but not this one.
        """
        number = len(self.probabilities)
        if not self.tasks:
            return range(number)
        if task not in self.tasks:
            raise ValueError(f"the image was read for {', '.join(self.tasks)}, not for {task}")
        number //= len(self.tasks)
        first = self.tasks.index(task) * number
        return range(first, first + number)

    def of_task(self, task: str) -> "ImagePrediction":
        """Return the prediction of the queries of a task. Raises as `queries_of_task`."""
        if not self.tasks:
            return self
        queries = self.queries_of_task(task)
        of = slice(queries.start, queries.stop)
        return self._replace(
            probabilities=self.probabilities[of],
            mask_logits=self.mask_logits[of],
            embeddings=None if self.embeddings is None else self.embeddings[of],
            tasks=(),
        )


class Prediction(NamedTuple):
    """All queries' class logits (B, Q, K+1), the last for "no object", and mask embeddings (B, Q, C).

    `queries` (B, Q, C) are what both are computed of, for a decoder that tells them. `mask_features` (B, C,
    H/4, W/4) are this prediction's own; None: those that all predictions share.
    """

    class_logits: Tensor
    mask_embed: Tensor
    queries: Tensor | None = None
    mask_features: Tensor | None = None


@dataclass
class Predictions:
    """The predictions before the first layer and after each one, and the mask features (B, C, H/4, W/4).

    Each prediction may have mask features of its own instead; `mask_features` are then the last one's.

    `pilots` are the predictions of queries that were told their targets (`transformer_decoder.pilots`), with
    P instead of Q queries; they are for training alone. `tasks` are those of `ImagePrediction`.
    """

    layers: list[Prediction]
    mask_features: Tensor
    pilots: list[Prediction] | None = field(default=None, kw_only=True)
    tasks: tuple[str, ...] = field(default=(), kw_only=True)

    def mask_logits(self, layer: int = -1) -> Tensor:
        """Return the dense mask logits (B, Q, H/4, W/4) of one layer, in float32 even under autocast."""
        prediction = self.layers[layer]
        own = prediction.mask_features
        return multiply_masks(prediction.mask_embed, self.mask_features if own is None else own)

    def of_images(self, sizes: Sequence[Sizes], layer: int = -1) -> list[ImagePrediction]:
        """Return the prediction of one layer, by default the last, for each image of the batch.

        Raises:
            ValueError: there is no such layer.
        """
        check_layer(layer, len(self.layers))
        probabilities = self.layers[layer].class_logits.float().softmax(-1)
        images = zip(probabilities, self.mask_logits(layer), sizes, strict=True)
        found = [ImagePrediction(*image, tasks=self.tasks) for image in images]
        return with_embeddings(found, self.layers[layer].queries)


class AuxiliaryPrediction(NamedTuple):
    """Logits of classes (B, K, h, w) of each auxiliary head, for training alone, and their common stride."""

    logits: Sequence[Tensor]
    stride: int


@dataclass
class PixelPredictions:
    """The predictions of a per-pixel model: logits of classes (B, K, H/4, W/4) after each layer."""

    layers: list[Tensor]
    auxiliary: AuxiliaryPrediction | None = None

    def mask_logits(self, layer: int = -1) -> Tensor:
        """Return the class logits (B, K, H/4, W/4) of one layer in float32."""
        return self.layers[layer].float()

    def of_images(self, sizes: Sequence[Sizes], layer: int = -1) -> list[ImagePrediction]:
        """Return the prediction of one layer for each image, as `Predictions.of_images`.

        Logits are those of images enlarged as by `enlarge_class_logits`.
        """
        check_layer(layer, len(self.layers))
        logits = self.mask_logits(layer)
        classes, height, width = logits.shape[1:]
        certain = torch.eye(classes, classes + 1, device=logits.device)
        enlarged = (PIXEL_STRIDE * height, PIXEL_STRIDE * width)
        return [
            ImagePrediction(certain, image, size._replace(padded=enlarged), per_pixel=True)
            for image, size in zip(logits, sizes, strict=True)
        ]


def enlarge_class_logits(logits: Tensor, stride: int = PIXEL_STRIDE) -> Tensor:
    """Return class logits (B, K, h, w) of a per-pixel model at full size, (B, K, H, W) float32.

    Sides of the padded image that `stride` does not divide are exceeded.
    """
    return F.interpolate(logits.float(), scale_factor=stride, mode="bilinear", align_corners=False)


def check_layer(layer: int, count: int) -> None:
    """Raise ValueError if the model does not make a prediction `layer`, of `count`."""
    if not -count <= layer < count:
        raise ValueError(
            f"MODEL.MASK_FORMER.TEST.LAYER is {layer}, but the model makes {count} predictions: "
            f"0 to {count - 1}, or -1 for the last"
        )


def with_embeddings(predictions: list[ImagePrediction], queries: Tensor | None) -> list[ImagePrediction]:
    """Return the predictions of the images, with the queries (B, Q, C) as embeddings if there are any."""
    if queries is None:
        return predictions
    pairs = zip(predictions, queries.float(), strict=True)
    return [prediction._replace(embeddings=embeddings) for prediction, embeddings in pairs]


def multiply_masks(mask_embed: Tensor, mask_features: Tensor) -> Tensor:
    """Return mask logits (B, Q, *S) in float32, of mask_embed (B, Q, C) and mask_features (B, C, *S)."""
    with torch.autocast(mask_features.device.type, enabled=False):
        logits = mask_embed.float() @ mask_features.float().flatten(2)
    return logits.unflatten(-1, mask_features.shape[2:])
