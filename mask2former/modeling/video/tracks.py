"""From the prediction for a clip to its best tracks.

Masks are computed for the queries of these tracks alone, frame by frame, and kept as runs: the logits of a
long clip at full size would take gigabytes.

Shapes: `Q` queries, `K` classes, `C` channels, `T` frames, `N` tracks, `h, w` the sides of the mask features,
`H, W` those of the output.
"""

from typing import Any

from torch import Tensor

from mask2former.modeling.postprocessing.inference import exact_float32
from mask2former.modeling.postprocessing.instance import masks_at_output
from mask2former.modeling.predictions import Prediction, Sizes, multiply_masks
from mask2former.structures import RunLengthMasks

MOST_TRACKS = 10  # of a clip, as published


def best_tracks(
    prediction: Prediction, mask_features: Tensor, sizes: Sizes, *, compact: bool, memory_budget: int
) -> dict[str, Any]:
    """Return the N <= MOST_TRACKS most probable pairs of query and class, by decreasing score.

    Args:
        prediction: of one clip, class_logits (1, Q, K+1) and mask_embed (1, Q, C).
        mask_features: (1, C, T, h, w).
        memory_budget: bytes that the resized masks of a frame may take.

    Returns:
        "image_size" (H, W); "pred_scores", N class probabilities; "pred_labels", N classes; "pred_masks",
        N masks (T, H, W) bool on the CPU, or if `compact` N `RunLengthMasks` with T masks each.
    """
    probabilities = prediction.class_logits[0].float().softmax(-1)[:, :-1]
    scores, index = probabilities.flatten().topk(min(MOST_TRACKS, probabilities.numel()))
    query, label = index // probabilities.shape[1], index % probabilities.shape[1]
    distinct, which = query.unique(return_inverse=True)
    frames = []
    with exact_float32(mask_features.device):
        for features in mask_features.unbind(2):
            logits = multiply_masks(prediction.mask_embed[:, distinct], features)[0]
            frames.append(masks_at_output(logits, sizes, memory_budget)[0])
    tracks = [RunLengthMasks(sizes.output, [masks.runs[i] for masks in frames]) for i in which.tolist()]
    return {
        "image_size": sizes.output,
        "pred_scores": scores.tolist(),
        "pred_labels": label.tolist(),
        "pred_masks": tracks if compact else [track.dense() for track in tracks],
    }
