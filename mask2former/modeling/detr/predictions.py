"""DETR's predictions: classes and boxes after every decoder layer, and masks of the queries that need one.

Shapes: `L` predictions, `B` images, `Q` queries, `n` chosen queries, `K` classes, `O` outputs of the class
head besides "no object", `C` channels, `H, W` the padded image's sides.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mask2former.modeling.detr.boxes import corners_of
from mask2former.modeling.detr.mask_head import MaskSource
from mask2former.modeling.predictions import ImagePrediction, Sizes, check_layer

BOX_STRIDE = 4  # pixels of a cell of the masks that stand for boxes


@dataclass
class DetrPredictions:
    """The predictions after each decoder layer.

    Args:
        class_logits: (L, B, Q, O+1), the last for "no object".
        boxes: center and size (L, B, Q, 4), in [0, 1] of each image.
        queries: the decoder's output (L, B, Q, C).
        outputs: the class head's output of each class and, at last, of "no object", (K+1,).
        sizes: (height, width) in pixels of each image, without padding.
        padded_size: (H, W).
        source: what masks are computed of; None in the stage without masks, where a mask stands for the box.
    """

    class_logits: Tensor
    boxes: Tensor
    queries: Tensor
    outputs: Tensor
    sizes: Sequence[tuple[int, int]]
    padded_size: tuple[int, int]
    source: MaskSource | None

    def masks(self, image: int, index: Tensor | None = None, layer: int = -1) -> Tensor:
        """Return the mask logits (n, H/4, W/4) of the queries `index` (n,) of an image, by default of all."""
        chosen = slice(None) if index is None else index
        if self.source is None:
            boxes = self.boxes[layer, image][chosen]
            return depths_in_boxes(boxes.float(), self.sizes[image], self.padded_size)
        return self.source.masks(image, self.queries[layer, image][chosen])

    def mask_logits(self, layer: int = -1) -> Tensor:
        """Return the mask logits (B, Q, H/4, W/4) of one layer in float32."""
        return torch.stack([self.masks(image, layer=layer) for image in range(len(self.sizes))])

    def of_images(
        self,
        sizes: Sequence[Sizes],
        layer: int = -1,
        needed: Callable[[Tensor], Tensor] | None = None,
    ) -> list[ImagePrediction]:
        """Return the prediction of one layer for each image, as `Predictions.of_images`, with boxes.

        A probability is the share among all outputs of the class head, also those that stand for no class.
        `needed` tells from the probabilities (Q, K+1) of an image which queries (n,) to return; masks of the
        others are not computed.
        """
        check_layer(layer, len(self.boxes))
        probabilities = self.class_logits[layer].float().softmax(-1)[..., self.outputs]
        corners = corners_of(self.boxes[layer].float())
        found = []
        for image, size in enumerate(sizes):
            of_image = probabilities[image]
            index = (
                torch.arange(len(of_image), device=of_image.device) if needed is None else needed(of_image)
            )
            masks, embeddings = self.masks(image, index, layer), self.queries[layer, image][index].float()
            boxes = corners[image][index]
            found.append(ImagePrediction(of_image[index], masks, size, boxes=boxes, embeddings=embeddings))
        return found


def depths_in_boxes(boxes: Tensor, size: tuple[int, int], padded_size: tuple[int, int]) -> Tensor:
    """Return the depth in pixels of each cell's center in boxes (n, 4), negative outside: (n, H/4, W/4).

    As mask logits, they change sign at the edges of the boxes, given by center and size in [0, 1] of an image
    of `size`.
    """
    x, y = (
        (torch.arange(-(-side // BOX_STRIDE), device=boxes.device) + 0.5) * BOX_STRIDE
        for side in padded_size[::-1]
    )
    left, top, right, bottom = corners_of(boxes).unbind(1)
    horizontal = torch.minimum(x - left[:, None] * size[1], right[:, None] * size[1] - x)
    vertical = torch.minimum(y - top[:, None] * size[0], bottom[:, None] * size[0] - y)
    return torch.minimum(vertical[:, :, None], horizontal[:, None])
