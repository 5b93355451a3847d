"""Modulated deformable convolution: "Deformable ConvNets v2: More Deformable, Better Results", section 3.2.

Each tap of the kernel reads the map beside its cell, at an offset, with bilinear interpolation, and
multiplies the value by a number in [0, 1]. Both are predicted for each output cell and shared by groups of
channels. The operator of deformable attention samples the map: groups are its heads, and there is one query,
with one point, for each output cell and tap. A product of the samples with the kernel follows. The samples
are nine times as large as the map, so the output is computed in chunks of rows, which the backward pass
samples again.

Shapes: `B` images, `C` channels, `G` groups, `T` taps of the kernel, `H, W` the sides of the map, `h, w`
those of the output, `r` rows of a chunk.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mask2former.modeling.layers.conv import memory_format
from mask2former.ops.deformable import ms_deform_attn

SAMPLES_BYTES = 2**26  # of a chunk of more than one row


class ModulatedDeformConv(nn.Module):
    """The convolution, with offsets and modulation that another convolution predicts from another map.

    Parameters are named and laid out as in DCNv2's own code: of the predicted channels, the first two thirds
    are offsets, y then x for each tap of each group, the last third the logits of the modulation.

    Args:
        groups: of input channels that share offsets and modulation.

    Raises:
        ValueError: the groups do not divide the channels.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, groups: int, stride: int = 1
    ) -> None:
        super().__init__()
        if in_channels % groups:
            raise ValueError(
                f"a deformable convolution has {groups} groups, which do not divide {in_channels} channels"
            )
        self.groups, self.stride, self.padding = groups, stride, kernel_size // 2
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.conv_offset_mask = nn.Conv2d(
            in_channels, 3 * groups * kernel_size**2, kernel_size, stride=stride, padding=self.padding
        )
        bound = (in_channels * kernel_size**2) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.conv_offset_mask.weight)
        assert self.conv_offset_mask.bias is not None
        nn.init.zeros_(self.conv_offset_mask.bias)

    def forward(self, x: Tensor, offset_features: Tensor) -> Tensor:
        """Convolve x (B, C, H, W) to (B, C_out, h, w), at offsets predicted from a map of the shape of x.

        It computes in float32 even under autocast: in half precision, locations on a large map would be off
        by a fraction of a cell.
        """
        with torch.autocast(x.device.type, enabled=False):
            predicted = self.conv_offset_mask(offset_features.float())
            offsets, logits = predicted.unflatten(1, (3, self.groups, -1)).split((2, 1), dim=1)
            return modulated_deform_conv(
                x.float(),
                offsets.flatten(1, 3).unflatten(1, (self.groups, -1, 2)),
                logits[:, 0].sigmoid(),
                self.weight,
                self.bias,
                stride=self.stride,
                padding=self.padding,
            )


def modulated_deform_conv(
    x: Tensor,
    offsets: Tensor,
    modulation: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: int = 1,
    padding: int = 0,
) -> Tensor:
    """Convolve x (B, C, H, W), which is zero outside, to (B, C_out, h, w).

    Args:
        offsets: (B, G, T, 2, h, w), y then x in cells of x, the taps row by row.
        modulation: (B, G, T, h, w), in [0, 1].
        weight: (C_out, C, k, k).
        bias: (C_out,).
    """
    batch, _, height, width = x.shape
    values = x.flatten(2).transpose(1, 2).unflatten(2, (offsets.shape[1], -1)).contiguous()
    kernel = weight.permute(0, 2, 3, 1).flatten(1)  # (C_out, T * C)
    cells = _tap_cells(weight.shape[2], offsets.shape[4:], stride, padding, x)

    def convolve_rows(cells: Tensor, offsets: Tensor, modulation: Tensor) -> Tensor:
        """Return r rows of the output as (B, r * w, C_out)."""
        rows, columns = (cells + offsets + 0.5).unbind(3)
        locations = torch.stack((columns / width, rows / height), dim=-1)  # (B, G, T, r, w, 2)
        samples = ms_deform_attn(
            values,
            ((height, width),),
            locations.permute(0, 3, 4, 2, 1, 5).flatten(1, 3)[:, :, :, None, None],
            modulation.permute(0, 3, 4, 2, 1).flatten(1, 3)[..., None, None],
        )
        return F.linear(samples.view(batch, -1, kernel.shape[1]), kernel, bias)

    row_bytes = batch * offsets.shape[5] * kernel.shape[1] * x.element_size()
    chunks = zip(
        *(maps.split(max(SAMPLES_BYTES // row_bytes, 1), -2) for maps in (cells, offsets, modulation)),
        strict=True,
    )
    if torch.is_grad_enabled():
        parts = [checkpoint(convolve_rows, *chunk, use_reentrant=False) for chunk in chunks]
    else:
        parts = [convolve_rows(*chunk) for chunk in chunks]
    out = torch.cat(parts, dim=1).transpose(1, 2).unflatten(2, offsets.shape[4:])
    return out.contiguous(memory_format=memory_format(x))


def _tap_cells(kernel_size: int, shape: torch.Size, stride: int, padding: int, like: Tensor) -> Tensor:
    """Return where the taps are without offsets: (T, 2, h, w), row and column in the map."""
    taps = torch.arange(kernel_size, dtype=like.dtype, device=like.device)
    rows, columns = (
        torch.arange(side, dtype=like.dtype, device=like.device) * stride - padding for side in shape
    )
    size = (kernel_size, kernel_size, *shape)
    y = (taps[:, None] + rows)[:, None, :, None].expand(size)
    x = (taps[:, None] + columns)[None, :, None].expand(size)
    return torch.stack((y, x), dim=2).flatten(0, 1)
