"""Maps of a plain vision transformer at other strides than that of its patches.

The pyramid of maps from the last one is that of "Exploring Plain Vision Transformer Backbones for Object
Detection" (ECCV 2022), with the blocks of "Your ViT is Secretly an Image Segmentation Model" (CVPR 2025).

Shapes: `B` images, `C` channels, `H, W` the sides of a map.
"""

from torch import Tensor, nn
from torch.nn import functional as F

NORM_EPS = 1e-6


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a map (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ScaleBlock(nn.Module):
    """A map at twice the resolution, or at half of it: strided convolution, depthwise convolution, norm.

    Args:
        width: channels of both maps.
        up: double the resolution; False: halve it, with sides rounded up.
    """

    def __init__(self, width: int, *, up: bool) -> None:
        super().__init__()
        convolution = nn.ConvTranspose2d if up else nn.Conv2d
        self.up = up
        self.conv1 = convolution(width, width, kernel_size=2, stride=2)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width, bias=False)
        self.norm = ChannelNorm(width, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, 2 * H, 2 * W), or to (B, C, H / 2, W / 2)."""
        if not self.up:
            x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        return self.norm(self.conv2(F.gelu(self.conv1(x))))


def scale_blocks(width: int, doublings: int) -> nn.Sequential:
    """Return blocks that double the resolution so many times, or halve it if the number is negative."""
    return nn.Sequential(*(ScaleBlock(width, up=doublings > 0) for _ in range(abs(doublings))))
