"""Resizing and scores of whole images, with which results made tile by tile are compared."""

import torch
from torch.nn.functional import interpolate


def resize_whole(maps, sizes):
    """Resize maps (Q, h, w) to the padded image, crop them, and resize them to the output: (Q, H, W)."""
    padded = interpolate(maps[None], size=sizes.padded, mode="bilinear", align_corners=False)
    image = padded[..., : sizes.image[0], : sizes.image[1]]
    return interpolate(image, size=sizes.output, mode="bilinear", align_corners=False)[0]


def dense_scores(prediction, resize_first):
    """Return the semantic scores (K, H, W), computed at once."""
    sizes, classes = prediction.sizes, prediction.probabilities[:, :-1]
    at = sizes if resize_first else sizes._replace(output=sizes.image)
    scores = torch.einsum("qk,qhw->khw", classes, resize_whole(prediction.mask_logits, at).sigmoid())
    if not resize_first:
        scores = interpolate(scores[None], size=sizes.output, mode="bilinear", align_corners=False)[0]
    return scores.flip(-1) if prediction.flipped else scores


def check_labels(labels, scores):
    """Check that each pixel has a class of the highest score, up to rounding."""
    assert labels.dtype == torch.int32 and labels.shape == scores.shape[1:]
    assert torch.allclose(scores.gather(0, labels[None].long())[0], scores.amax(0), atol=1e-5)
