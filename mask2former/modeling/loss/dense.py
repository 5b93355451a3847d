"""Matching and loss on whole masks instead of points: MaskFormer's way, and rows of the paper's Table 5.

Queries are matched on the grid of the mask logits, with targets reduced to it. The loss is computed at the
padded image's size, to which logits are enlarged (so does MaskFormer's released criterion; the paper does not
state the sizes). Enlarged masks are large: they are computed in chunks, and again in the backward pass.

Shapes: `L` predictions, `N` targets of an image, `C` channels, `H, W` the padded image's sides, `h, w` those
of the mask logits or of an unpadded mask, `M` masks of a chunk.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mask2former.modeling.loss.mask_terms import mask_terms

PIXELS_AT_ONCE = 2**23  # of enlarged masks: 32 MiB each tensor


def pad_masks(masks: Tensor, padded_size: tuple[int, int]) -> Tensor:
    """Return masks (N, h, w) as (N, H, W): they cover the top left part, the rest is False."""
    height, width = masks.shape[1:]
    return F.pad(masks, (0, padded_size[1] - width, 0, padded_size[0] - height))


def reduce_masks(masks: Tensor, padded_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Return boolean masks (N, h, w), padded, at the pixels nearest to the cells of a grid: (N, *size)."""
    padded = pad_masks(masks, padded_size).to(torch.uint8)[:, None]
    return F.interpolate(padded, size, mode="nearest").squeeze(1).float()


def dense_mask_terms(
    mask_embed: Tensor, mask_features: Tensor, masks: Tensor, padded_size: tuple[int, int], mask_loss: str
) -> tuple[Tensor, Tensor]:
    """Return both terms of `mask_terms` (L, N) over all pixels of the padded image.

    Of one image: mask_embed (L, N, C) of the matched queries, mask_features (C, h, w), masks (N, h, w) bool.
    """
    num_layers, num_targets = mask_embed.shape[:2]
    target = torch.arange(num_targets, device=masks.device).repeat(num_layers)
    step = _masks_at_once(padded_size)
    chunks = [
        checkpoint(_chunk_terms, embed, mask_features, masks[of], padded_size, mask_loss, use_reentrant=False)
        for embed, of in zip(mask_embed.flatten(0, 1).split(step), target.split(step), strict=True)
    ]
    loss, dice = (torch.cat(terms).view(num_layers, num_targets) for terms in zip(*chunks, strict=True))
    return loss, dice


def _chunk_terms(
    embed: Tensor, features: Tensor, masks: Tensor, padded_size: tuple[int, int], mask_loss: str
) -> tuple[Tensor, Tensor]:
    """Return the terms (M,) of embeddings (M, C) and masks (M, h, w)."""
    logits = (embed @ features.flatten(1)).unflatten(1, features.shape[1:])
    return _full_size_terms(logits, masks, padded_size, mask_loss)


def enlarged_mask_terms(
    logits: Tensor, masks: Tensor, padded_size: tuple[int, int], mask_loss: str
) -> tuple[Tensor, Tensor]:
    """Return both terms of `mask_terms` (N,) over all pixels, of mask logits and masks (N, h, w) bool."""
    step = _masks_at_once(padded_size)
    chunks = [
        checkpoint(_full_size_terms, some, own, padded_size, mask_loss, use_reentrant=False)
        for some, own in zip(logits.split(step), masks.split(step), strict=True)
    ]
    loss, dice = (torch.cat(terms) for terms in zip(*chunks, strict=True))
    return loss, dice


def _masks_at_once(padded_size: tuple[int, int]) -> int:
    """Return the number of masks of a chunk."""
    return max(1, PIXELS_AT_ONCE // (padded_size[0] * padded_size[1]))


def _full_size_terms(
    logits: Tensor, masks: Tensor, padded_size: tuple[int, int], mask_loss: str
) -> tuple[Tensor, Tensor]:
    """Return the terms (M,) of mask logits and masks (M, h, w)."""
    enlarged = F.interpolate(logits[:, None], padded_size, mode="bilinear", align_corners=False)
    return mask_terms(enlarged.flatten(1), pad_masks(masks, padded_size).flatten(1).float(), mask_loss)
