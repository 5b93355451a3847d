"""EoMT's head: queries that join the tokens of the image in the last blocks of the vision transformer.

"Your ViT is Secretly an Image Segmentation Model" (CVPR 2025). Before each of these blocks, classes and masks
are predicted of all tokens so far, and a query attends to the patches inside its mask alone. In the course of
training these masks are removed, block after block; then the blocks are plain ones, and a single prediction
is made, after the last of them.

Shapes: `B` images, `Q` queries, `K` classes, `C` channels, `N` tokens of the image, `M = Q + N`, `P` those of
them that are patches, `H, W` the sides of the padded image in pixels.
"""

from collections.abc import Sequence
from math import log2
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mask2former.modeling.eomt.backbone import TOKENS
from mask2former.modeling.eomt.options import HEAD, first_blocks
from mask2former.modeling.predictions import Prediction, Predictions, multiply_masks
from mask2former.modeling.transformer_decoder.memory_attention import resize_mask_features
from mask2former.modeling.vit.positions import TokenLayout
from mask2former.modeling.vit.scaling import scale_blocks
from mask2former.modeling.vit.transformer import VisionTransformer
from mask2former.structures import ShapeSpec
from mask2former.utils.registry import SEM_SEG_HEADS

MASK_STRIDE = 4
PATCH_SIZES = (4, 8, 16)  # which divide MODEL.MASK_FORMER.SIZE_DIVISIBILITY, 16


class EomtHead(nn.Module):
    """Queries, and what predicts classes and masks of them.

    Args:
        num_blocks: blocks of the vision transformer that the queries go through.
        patch_size: side of a patch in pixels, of `PATCH_SIZES`.

    Attributes:
        attn_mask_probs: the probability, for each block, that a query is masked in training. In evaluation
            all are masked unless it is 0. The published checkpoints hold it.

    Raises:
        ValueError: another patch size.
    """

    attn_mask_probs: Tensor

    def __init__(
        self, *, width: int, num_classes: int, num_queries: int, num_blocks: int, patch_size: int = 16
    ) -> None:
        super().__init__()
        if patch_size not in PATCH_SIZES:
            raise ValueError(
                f"MODEL.VIT.PATCH_SIZE is {patch_size}; EoMT takes {', '.join(map(str, PATCH_SIZES))}"
            )
        self.q = nn.Embedding(num_queries, width)
        self.class_head = nn.Linear(width, num_classes + 1)
        self.mask_head = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
        )
        self.upscale = scale_blocks(width, int(log2(patch_size / MASK_STRIDE)))
        self.register_buffer("attn_mask_probs", torch.ones(num_blocks))
        self._masked = [1.0] * num_blocks  # their values, which must be known without waiting for a GPU
        self.register_load_state_dict_post_hook(lambda head, _: head._read_probabilities())

    def forward(self, x: Tensor, layout: TokenLayout, vit: VisionTransformer) -> Predictions:
        """Apply the last blocks of `vit` to tokens x (B, N, C) and predict.

        In training there is a prediction before each block and after the last; in evaluation before blocks
        with masks, and after the last.
        """
        x = torch.cat((self.q.weight.expand(x.shape[0], -1, -1), x), dim=1)
        predictions = []
        first = len(vit.blocks) - len(self._masked)
        for number, probability in enumerate(self._masked, start=first):
            blocked = None
            if self.training or probability:
                predictions.append(self._predict(vit.norm(x), layout, vit))
            if probability:
                blocked = F.pad(self._blocked(predictions[-1], layout, probability), (vit.special_tokens, 0))
                blocked = F.pad(blocked, (blocked.shape[1], 0))
            x = vit.run(x, layout, number, number + 1, blocked=blocked)
        predictions.append(self._predict(vit.norm(x), layout, vit))
        features = predictions[-1].mask_features
        assert features is not None
        return Predictions(predictions, features)

    def set_probabilities(self, probabilities: Sequence[float]) -> None:
        """Set for each block the probability that a query is masked."""
        self.attn_mask_probs.copy_(torch.tensor(probabilities))
        self._masked = list(probabilities)

    def train(self, mode: bool = True) -> "EomtHead":
        """Switch to training or evaluation; the buffer may have been changed since the last time."""
        self._read_probabilities()
        return super().train(mode)

    def _read_probabilities(self) -> None:
        """Read the buffer, unless it has no data, as in a model whose cost is counted."""
        if not self.attn_mask_probs.is_meta:
            self._masked = self.attn_mask_probs.tolist()

    def _predict(self, x: Tensor, layout: TokenLayout, vit: VisionTransformer) -> Prediction:
        """Predict of normalized tokens x (B, M, C)."""
        queries = x[:, : len(self.q.weight)]
        features = self.upscale(vit.to_map(x, layout))
        return Prediction(self.class_head(queries), self.mask_head(queries), queries, features)

    @torch.no_grad()
    def _blocked(self, prediction: Prediction, layout: TokenLayout, probability: float) -> Tensor:
        """Return the patches outside of each query's mask, (B, Q, P) bool.

        In training each query of each image is left without a mask with the complementary probability.
        """
        assert prediction.mask_features is not None
        features = resize_mask_features(prediction.mask_features, (layout.height, layout.width))
        blocked = multiply_masks(prediction.mask_embed, features.flatten(2)) <= 0
        if self.training and probability < 1:
            blocked &= torch.rand(*blocked.shape[:2], 1, device=blocked.device) < probability
        return blocked


@SEM_SEG_HEADS.register_as(HEAD)
def build_eomt_head(cfg: Any, input_shape: dict[str, ShapeSpec]) -> EomtHead:
    """Build the head of a config for the backbone's tokens.

    Raises:
        ValueError: the backbone or the meta-architecture is another one, or a number is out of range.
    """
    part = f"MODEL.SEM_SEG_HEAD.NAME {HEAD}"
    first_blocks(cfg, part)
    if TOKENS not in input_shape:
        raise ValueError(f"{part} needs MODEL.BACKBONE.NAME EomtBackbone, not {cfg.MODEL.BACKBONE.NAME}")
    return EomtHead(
        width=input_shape[TOKENS].channels,
        patch_size=input_shape[TOKENS].stride,
        num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        num_queries=cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES,
        num_blocks=cfg.MODEL.EOMT.NUM_BLOCKS,
    )
