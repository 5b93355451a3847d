"""Multi-scale deformable attention: the weighted sum of values sampled at a few points of several maps.

The pixel decoder (section 3.2.1 of the paper) spends most of its time here. These two functions are the
interface for all backends.

Shapes: `B` images, `S` cells of all maps together, `Lq` queries, `L` levels, `P` points, `D` channels
of a head, `H_l, W_l` the sides of map l.
"""

import torch
from torch import Tensor

from mask2former.ops import reference
from mask2former.ops.operator import points_type
from mask2former.ops.reference import AttentionInputs, Shapes


def ms_deform_attn(
    value: Tensor, spatial_shapes: Shapes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Attend to bilinearly sampled values, which are zero outside a map.

    Args:
        value: (B, S, heads, D), the maps in the order of `spatial_shapes`, each row by row; float32, float16,
            bfloat16, or float64, which PyTorch alone computes.
        spatial_shapes: (H_l, W_l) of each level, Python numbers, so that no device has to be synchronized.
        sampling_locations: (B, Lq, heads, L, P, 2), x then y, where 0 and 1 are the outer edges of a map.
            Avoid 16 bits: near 1, half precision has steps of 0.06 cells on a map 128 wide.
        attention_weights: (B, Lq, heads, L, P) probabilities.

    Returns:
        (B, Lq, heads * D) of value's type, the heads one after the other; summed in float32.

    Raises:
        ValueError: shapes, types or devices that do not fit, or the backend that `MASK2FORMER_OPS` asks for
            cannot compute it.
    """
    return _call(value, spatial_shapes, sampling_locations, attention_weights, None)


def ms_deform_attn_from_offsets(
    value: Tensor,
    spatial_shapes: Shapes,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """Attend to values sampled near reference points, weighted by the softmax of the logits over L and P.

    Unlike with `ms_deform_attn`, locations and weights are never stored. Otherwise it is as that, errors too.

    Args:
        reference_points: (1 or B, Lq, 1 or L, 2), x then y, where 0 and 1 are the outer edges of a map.
        sampling_offsets: (B, Lq, heads, L, P, 2) from the reference, x then y, in cells of the level.
        attention_logits: (B, Lq, heads, L, P).
    """
    centers = reference_points.to(points_type(value))
    return _call(value, spatial_shapes, sampling_offsets, attention_logits, centers)


def _call(value: Tensor, shapes: Shapes, points: Tensor, weights: Tensor, centers: Tensor | None) -> Tensor:
    if isinstance(shapes, Tensor):
        raise ValueError("spatial_shapes is a tensor, where Python numbers are expected: give its .tolist()")
    dtype = points_type(value)
    if torch.onnx.is_in_onnx_export():  # ONNX has GridSample, which the reference needs, but not our operator
        return reference.forward(AttentionInputs(value, shapes, points.to(dtype), weights.to(dtype), centers))
    sides = [side for shape in shapes for side in shape]
    result: Tensor = torch.ops.mask2former.ms_deform_attn(
        value, sides, points.to(dtype), weights.to(dtype), centers
    )
    return result
