"""Images that are no squares, for a model that was trained on squares: padded, or predicted in windows.

"pad": at the right and bottom, with black, as published for objects. "windows": squares of the shorter side,
evenly spaced along the longer one, whose class scores are averaged, as published for semantic segmentation.

Shapes: `B` images, `K` classes, `H, W` the padded image's sides, `h, w` those of an image before padding.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mask2former.modeling.mask_former import Inputs, MaskFormer
from mask2former.modeling.postprocessing.inference import exact_float32
from mask2former.modeling.postprocessing.semantic import semantic_scores
from mask2former.modeling.predictions import ImagePrediction, Sizes


class SquareInputs(MaskFormer):
    """A model whose network sees squares.

    Args:
        squares: what becomes of images that are no squares: "pad", "windows" (in evaluation), or "": nothing.
        **parts: as of `MaskFormer`.
    """

    def __init__(self, *, squares: str, **parts: Any) -> None:
        super().__init__(**parts)
        self.squares = squares

    def input_shape(self, size: tuple[int, int]) -> tuple[int, ...]:
        """Return the shape (B, 3, H, W) in which the network sees one image of `size` (h, w)."""
        if self.squares != "windows":
            return super().input_shape(size)
        side = min(size)
        windows = len(list(square_windows(*size)))
        return (windows, len(self.pixel_mean), *self._padded_size([(side, side)]))

    @torch.no_grad()
    def predict_images(self, batched_inputs: Inputs) -> list[ImagePrediction]:
        """Return the prediction for each image; with windows it is a per-pixel one, of averaged scores."""
        if self.squares != "windows":
            return super().predict_images(batched_inputs)
        return [self._predict_windows(inputs) for inputs in batched_inputs]

    def _predict_windows(self, inputs: Mapping[str, Any]) -> ImagePrediction:
        image = inputs["image"]
        size = (image.shape[1], image.shape[2])
        windows = list(square_windows(*size))
        predictions = super().predict_images([{"image": image[:, rows, cols]} for rows, cols in windows])
        scores = torch.zeros(self.num_classes, *size, device=self.device)
        counts = torch.zeros(size, device=self.device)
        budget = self.inference.memory_budget
        with exact_float32(self.device):
            for (rows, cols), prediction in zip(windows, predictions, strict=True):
                scores[:, rows, cols] += semantic_scores(prediction, resize_first=True, memory_budget=budget)
                counts[rows, cols] += 1
        certain = torch.eye(self.num_classes, self.num_classes + 1, device=self.device)
        output = (inputs.get("height", size[0]), inputs.get("width", size[1]))
        return ImagePrediction(certain, scores / counts, Sizes(size, size, output), per_pixel=True)

    def _padded_size(self, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """Return the sides (H, W) that a batch of images of these sizes (h, w) is padded to."""
        height, width = super()._padded_size(sizes)
        return (max(height, width),) * 2 if self.squares == "pad" else (height, width)

    def _pad(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Pad a normalized image (3, h, w) with black to `size`."""
        black = (-self.pixel_mean / self.pixel_std).expand(-1, *size)
        padded = black.clone()
        padded[:, : image.shape[1], : image.shape[2]] = image
        return padded


def square_windows(height: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Yield rows and columns of squares of the shorter side that cover an image, as few as possible.

    They are evenly spaced, up to rounding.
    """
    side, length = sorted((height, width))
    gaps = -(-length // side) - 1
    for i in range(gaps + 1):
        start = i * (length - side) // max(gaps, 1)
        along = slice(start, start + side)
        yield (along, slice(None)) if height > width else (slice(None), along)
