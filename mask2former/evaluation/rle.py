"""Masks as COCO's compressed run-length codes.

Letters: `N` masks of one image, `H, W` the image's sides in pixels.
"""

from typing import Any

import torch
from pycocotools import mask as mask_utils
from torch import Tensor


def encode_masks(masks: Tensor) -> list[dict[str, Any]]:
    """Bool masks (N, H, W) as `{"size": [H, W], "counts": str}`, ready for JSON."""
    if not len(masks):
        return []
    # COCO's codes run down the columns: transposed here, the copy below is the only one
    columns = masks.transpose(1, 2).to(torch.uint8).contiguous().cpu().numpy()
    codes = mask_utils.encode(columns.transpose(2, 1, 0))
    return [{"size": code["size"], "counts": code["counts"].decode("ascii")} for code in codes]
