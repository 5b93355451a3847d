"""K-Net's predictions: those of the usual kind after each update stage, and what the first kernels give.

Shapes: `B` images, `Q` kernels, of which the first `N` are for instances, `K` classes, `C` channels, `h, w`
the sides of the features, at stride 8.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from mask2former.modeling.predictions import (
    ImagePrediction,
    Predictions,
    Sizes,
    check_layer,
    multiply_masks,
    with_embeddings,
)

MASK_SCALE = 2  # masks are enlarged by it, to stride 4, before they are compared with targets or resized


@dataclass
class KNetPredictions(Predictions):
    """Predictions with a sigmoid of each class instead of a softmax, and masks at twice the features' size.

    Class logits are (B, Q, K), without "no object"; the last channel of `mask_features` (B, C+1, h, w) is 1,
    so that an embedding holds a bias.

    Attributes:
        first_masks: mask logits (B, N, h, w) of the instance kernels before the first stage.
        seg_logits: logits (B, K, h, w) of the semantic convolution.
        allowed: the classes that each kernel may have, (Q, K) bool.
    """

    first_masks: Tensor
    seg_logits: Tensor
    allowed: Tensor

    def small_masks(self, layer: int = -1) -> Tensor:
        """Return the mask logits (B, Q, h, w) of one stage in float32."""
        return multiply_masks(self.layers[layer].mask_embed, self.mask_features)

    def mask_logits(self, layer: int = -1) -> Tensor:
        """Return the mask logits (B, Q, 2h, 2w) of one stage in float32."""
        return enlarge(self.small_masks(layer))

    def of_images(self, sizes: Sequence[Sizes], layer: int = -1) -> list[ImagePrediction]:
        """Return the prediction of one stage for each image, as `Predictions.of_images`.

        The probability of "no object" is zero, because those of classes do not add up to 1.
        """
        check_layer(layer, len(self.layers))
        scores = self.layers[layer].class_logits.float().sigmoid() * self.allowed
        images = zip(F.pad(scores, (0, 1)), self.mask_logits(layer), sizes, strict=True)
        predictions = [ImagePrediction(*image, all_compete=True) for image in images]
        return with_embeddings(predictions, self.layers[layer].queries)


def enlarge(logits: Tensor) -> Tensor:
    """Return mask or class logits (B, Q, h, w) at twice their size, (B, Q, 2h, 2w)."""
    return F.interpolate(logits, scale_factor=MASK_SCALE, mode="bilinear", align_corners=False)
