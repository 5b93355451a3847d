"""Tensors whose shape in a file differs from the model's by design, and how each is adapted.

Shapes: `Q` queries, `C` channels, `w` the side of a window or grid in tokens, `A` attention heads, `p` the
side of a patch in pixels.
"""

import re
from collections.abc import Callable
from math import isqrt
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

QUERY_NOISE = 0.1  # of their standard deviation: equal queries would get equal gradients


def _resize_queries(given: Tensor, wanted: Tensor) -> Tensor | None:
    """Return the first Q' of queries (Q, C), or all of them repeated, the copies with a little noise."""
    old, new = len(given), len(wanted)
    if not old:
        return None
    resized = given.float().repeat(-(-new // old), 1)[:new]
    noise = torch.randn(resized.shape, generator=torch.Generator().manual_seed(0))
    resized[old:] += QUERY_NOISE * given.float().std() * noise[old:]
    return resized


def _resize_position_table(given: Tensor, wanted: Tensor) -> Tensor | None:
    """Interpolate ((2w-1)^2, A) to ((2w'-1)^2, A) bicubically, as an image of offsets.

    Rows after those of the offsets, which BEiT has for its class token, stay.
    """
    old, new = isqrt(len(given)), isqrt(len(wanted))
    others = len(given) - old**2
    if others != len(wanted) - new**2 or not old:
        return None
    image = given[: old**2].float().T.reshape(1, -1, old, old)
    resized = F.interpolate(image, size=(new, new), mode="bicubic").reshape(-1, new**2).T
    return torch.cat((resized, given[old**2 :].float()))


def _resize_positions(given: Tensor, wanted: Tensor) -> Tensor | None:
    """Interpolate the positions (1, w * w, C) of a grid bicubically, with antialiasing, as DINOv2 does."""
    old, new = isqrt(given.shape[1]), isqrt(wanted.shape[1])
    if old**2 != given.shape[1] or not old:
        return None
    grid = given.float().transpose(1, 2).reshape(1, -1, old, old)
    return F.interpolate(grid, size=(new, new), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)


def _resample_patches(given: Tensor, wanted: Tensor) -> Tensor | None:
    """Return kernels (C, 3, p', p') that give for a resized patch what kernels (C, 3, p, p) give for a patch.

    For smaller patches they do so as nearly as possible. "FlexiViT: One Model for All Patch Sizes" (2023).
    """
    old, new = given.shape[2:], wanted.shape[2:]
    pixels = old.numel()
    if not pixels:
        return None
    each_pixel = torch.eye(pixels).reshape(pixels, 1, *old)
    resized = F.interpolate(each_pixel, size=new, mode="bicubic", antialias=True)
    resizing = resized.flatten(1)  # (p * p, p' * p')
    return (given.float().flatten(2) @ torch.linalg.pinv(resizing).T).unflatten(2, new)


class Adaptation(NamedTuple):
    """Treatment of tensors whose size along `axes` differs by design; `count` maps it to its meaning."""

    pattern: str
    adapt: Callable[[Tensor, Tensor], Tensor | None]
    done: str
    count: Callable[[int], int] = lambda rows: rows
    axes: tuple[int, ...] = (0,)

    def fits(self, given: Tensor, wanted: Tensor) -> bool:
        """Return True if the shapes differ along `axes` alone."""
        return given.ndim == wanted.ndim and all(
            given.shape[i] == wanted.shape[i] for i in range(given.ndim) if i not in self.axes
        )


ADAPTATIONS = (
    Adaptation(
        r"\.(class_embed|class_head)\.(weight|bias)$",
        lambda given, wanted: wanted,  # the initial values
        "re-initialized: class head ({} -> {} classes)",
        lambda rows: rows - 1,  # the last is "no object"
    ),
    Adaptation(
        r"(\.fc_cls|\.conv_seg|^sem_seg_head\.predictor)\.(weight|bias)$",  # of K-Net and per-pixel models
        lambda given, wanted: wanted,
        "re-initialized: class head ({} -> {} classes)",
    ),
    Adaptation(
        r"\.pilot_embed\.weight$",
        lambda given, wanted: wanted,
        "re-initialized: class embeddings of pilots ({} -> {} classes)",
    ),
    Adaptation(r"\.query_feat\.weight$", _resize_queries, "resized: query features ({} -> {})"),
    Adaptation(r"^sem_seg_head\.q\.weight$", _resize_queries, "resized: queries of EoMT ({} -> {})"),
    Adaptation(r"\.query_embed\.weight$", _resize_queries, "resized: query positions ({} -> {})"),
    Adaptation(
        r"\.relative_position_bias_table$",
        _resize_position_table,
        "interpolated: relative position tables (window {} -> {})",
        lambda rows: (isqrt(rows) + 1) // 2,
    ),
    Adaptation(
        r"\.vit\.pos_embed$", _resize_positions, "interpolated: positions (grid {} -> {})", isqrt, axes=(1,)
    ),
    Adaptation(
        r"\.vit\.patch_embed\.proj\.weight$",
        _resample_patches,
        "resampled: patch embedding (patches of {} -> {} pixels)",
        axes=(2, 3),
    ),
)


def adapt(name: str, given: Tensor, wanted: Tensor) -> tuple[Tensor, str] | None:
    """Return the tensor in the wanted shape and what was done, or None if nothing can be done."""
    for row in ADAPTATIONS:
        if re.search(row.pattern, name) and row.fits(given, wanted):
            value = row.adapt(given, wanted)
            note = row.done.format(*(row.count(tensor.shape[row.axes[0]]) for tensor in (given, wanted)))
            return None if value is None else (value, note)
    return None
