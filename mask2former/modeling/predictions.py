"""What the network hands to loss and inference: each prediction's embeddings, and the features they multiply.

Dense mask logits are large (`Q` maps an image and prediction) and most are never needed: the loss reads them
at points and for matched queries, inference for the last prediction. So they are products taken on demand.

Shapes: `B` images, `Q` queries, `K` classes, `C` channels, `H, W` the padded image's sides.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Prediction(NamedTuple):
    """All queries' class logits (B, Q, K+1), the last for "no object", and mask embeddings (B, Q, C)."""

    class_logits: Tensor
    mask_embed: Tensor


@dataclass
class Predictions:
    """The predictions before the first layer and after each one, and the mask features (B, C, H/4, W/4)."""

    layers: list[Prediction]
    mask_features: Tensor

    def mask_logits(self, layer: int = -1) -> Tensor:
        """Dense mask logits (B, Q, H/4, W/4) of one prediction, in float32 whatever autocast says."""
        return multiply_masks(self.layers[layer].mask_embed, self.mask_features)


def multiply_masks(mask_embed: Tensor, mask_features: Tensor) -> Tensor:
    """Mask logits (B, Q, *S), in float32, of embeddings (B, Q, C) and features (B, C, *S) at positions S."""
    with torch.autocast(mask_features.device.type, enabled=False):
        logits = mask_embed.float() @ mask_features.float().flatten(2)
    return logits.unflatten(-1, mask_features.shape[2:])
