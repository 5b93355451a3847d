"""Pairs of tracks and objects: how similar they are, and the assignment with the most similarity.

Shapes: `T` tracks, `N` objects of a frame, `C` channels, `h, w` the sides of masks.
"""

from __future__ import annotations

import numpy as np

from mask2former.utils.label_maps import Array


def cosines(first: Array, second: Array) -> Array:
    """Return the cosine similarities (T, N) of embeddings (T, C) and (N, C)."""
    return unit(first) @ unit(second).T


def unit(vectors: Array) -> Array:
    """Return vectors (N, C) of length 1; those of length 0 stay."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def mask_ious(first: Array, second: Array) -> Array:
    """Return the IoU (T, N) of masks (T, h, w) and (N, h, w) bool; 0 for two empty ones."""
    pixels = first.shape[1] * first.shape[2]
    a, b = (masks.reshape(len(masks), pixels).astype(np.float32) for masks in (first, second))
    shared = a @ b.T
    united = a.sum(1)[:, None] + b.sum(1) - shared
    return shared / np.maximum(united, 1)


def mask_centers(masks: Array) -> Array:
    """Return the mean position (N, 2) of masks (N, h, w), (y, x) as shares of the sides; NaN if empty."""
    sides = masks.shape[1:]
    areas = masks.sum((1, 2))
    with np.errstate(invalid="ignore"):  # empty masks
        return np.stack(
            [masks.sum(2 - axis) @ ((np.arange(sides[axis]) + 0.5) / sides[axis]) / areas for axis in (0, 1)],
            axis=1,
        )


def assign(similarity: Array, minimum: float) -> list[tuple[int, int]]:
    """Return the pairs (track, object) of the assignment with the largest sum of similarities (T, N).

    Each track and each object is in one pair at most. Pairs below the `minimum` are not made: they count as
    if both sides stayed alone.
    """
    from scipy.optimize import linear_sum_assignment  # a slow import, and single images need no matching

    gain = np.where(similarity >= minimum, similarity - minimum, 0)
    pairs = zip(*linear_sum_assignment(-gain), strict=True)
    return [(int(t), int(n)) for t, n in pairs if similarity[t, n] >= minimum]
