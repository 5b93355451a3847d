"""Masks as COCO's compressed run-length codes.

Shapes: `N` masks of one image, `H, W` the image's sides in pixels, `m` runs of a mask.
"""

from typing import Any

import torch
from pycocotools import mask as mask_utils
from torch import Tensor

from mask2former.structures import RunLengthMasks


def encode_masks(masks: Tensor | RunLengthMasks) -> list[dict[str, Any]]:
    """Return masks (N, H, W) as `{"size": [H, W], "counts": str}`, ready for JSON."""
    if not len(masks):
        return []
    if isinstance(masks, RunLengthMasks):
        codes = mask_utils.frPyObjects([_counts(runs, masks.size) for runs in masks.runs], *masks.size)
    else:
        # COCO's codes run down the columns: after this transpose, the copy in the next line is the only one
        columns = masks.transpose(1, 2).to(torch.uint8).contiguous().cpu().numpy()
        codes = mask_utils.encode(columns.transpose(2, 1, 0))
    return [{"size": list(code["size"]), "counts": code["counts"].decode("ascii")} for code in codes]


def distinct_masks(masks: Tensor | RunLengthMasks, max_iou: float) -> list[int]:
    """Return the indices of the masks (N, H, W) with an IoU of at most `max_iou` with each earlier one kept.

    An empty mask has an IoU of 0 with any other. Work and memory grow with the runs, not with the pixels.
    """
    codes = encode_masks(masks)
    kept: list[int] = []
    for i, code in enumerate(codes):
        earlier = [codes[k] for k in kept]
        if not kept or mask_utils.iou([code], earlier, [False] * len(earlier)).max() <= max_iou:
            kept.append(i)
    return kept


def _counts(runs: Tensor, size: tuple[int, int]) -> dict[str, Any]:
    """Return an uncompressed code: lengths of the alternating runs outside and inside the mask."""
    ends = torch.cat([runs.new_zeros(1), runs.flatten().cpu(), runs.new_full((1,), size[0] * size[1])])
    lengths = ends.diff().tolist()
    return {"size": list(size), "counts": lengths if lengths[-1] else lengths[:-1]}
