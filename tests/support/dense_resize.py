"""The slow, obvious resizing that tiles are compared with."""

from torch import Tensor
from torch.nn.functional import interpolate

from mask2former.modeling.predictions import Sizes


def resize_whole(maps: Tensor, sizes: Sizes) -> Tensor:
    """Maps (Q, h, w) to the padded image, cropped, then to the output, all at once: (Q, H, W)."""
    padded = interpolate(maps[None], size=sizes.padded, mode="bilinear", align_corners=False)
    image = padded[..., : sizes.image[0], : sizes.image[1]]
    return interpolate(image, size=sizes.output, mode="bilinear", align_corners=False)[0]
