"""DETR's mask head: a query's attention to the encoded cells, refined up the backbone's maps to a mask.

Section 4.4 of "End-to-End Object Detection with Transformers" (ECCV 2020). Each query's mask is computed by
itself, so only those that are needed are: the matched ones in training.

Shapes: `B` images, `n` queries of an image, `C` channels, `S` cells of the coarsest map, `h, w` the sides of
a map, `H, W` those of the padded image.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mask2former.modeling.layers.conv import init_c2_xavier

GROUPS = 8  # of the norms
SHRINKAGE = (2, 4, 8, 16)  # of the width, from the second convolution on
VALUES_AT_ONCE = 2**24  # of the finest, widest activation, where no gradients keep it: 64 MiB


def check_mask_head(width: int, num_heads: int) -> None:
    """Raise ValueError if the groups of the norms do not divide all widths of the mask head."""
    step = GROUPS * SHRINKAGE[-1]
    if width % step or num_heads % GROUPS:
        raise ValueError(
            f"MODEL.MASK_FORMER.HIDDEN_DIM is {width} and NHEADS {num_heads}; DETR's mask head "
            f"(MODEL.DETR.STAGE masks) needs multiples of {step} and {GROUPS}"
        )


class MHAttentionMap(nn.Module):
    """Attention weights of queries over all cells and heads together, without values."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_linear = nn.Linear(width, width)
        self.k_linear = nn.Linear(width, width)
        for linear in (self.q_linear, self.k_linear):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, queries: Tensor, cells: Tensor, blocked: Tensor | None) -> Tensor:
        """Attend from queries (n, C) to cells (S, C), but for those `blocked` (1, S): (n, heads, S)."""
        query = self.q_linear(queries).unflatten(-1, (self.num_heads, -1)).transpose(0, 1)
        key = self.k_linear(cells).unflatten(-1, (self.num_heads, -1)).permute(1, 2, 0)
        logits = (query * query.shape[-1] ** -0.5 @ key).float().transpose(0, 1)
        if blocked is not None:
            logits = logits.masked_fill(blocked, -torch.inf)
        return logits.flatten(1).softmax(-1).view(logits.shape)


class MaskHeadSmallConv(nn.Module):
    """Convolutions that refine a query's attention map at the sizes of three finer maps of the backbone.

    Args:
        width: of the coarsest map, projected.
        map_channels: of the three finer maps, the coarsest first.

    Raises:
        ValueError: as `check_mask_head`.
    """

    def __init__(self, *, width: int, num_heads: int, map_channels: list[int]) -> None:
        super().__init__()
        check_mask_head(width, num_heads)
        first = width + num_heads
        self.widths = [first, first, *(width // divisor for divisor in SHRINKAGE)]
        for number, (inputs, outputs) in enumerate(pairwise(self.widths), start=1):
            self.add_module(f"lay{number}", init_c2_xavier(nn.Conv2d(inputs, outputs, 3, padding=1)))
            self.add_module(f"gn{number}", nn.GroupNorm(GROUPS, outputs))
        self.out_lay = init_c2_xavier(nn.Conv2d(self.widths[-1], 1, 3, padding=1))
        for number, channels in enumerate(map_channels, start=1):
            adapter = nn.Conv2d(channels, self.widths[number + 1], 1)
            self.add_module(f"adapter{number}", init_c2_xavier(adapter))

    def forward(self, coarsest: Tensor, attention: Tensor, maps: list[Tensor]) -> Tensor:
        """Return mask logits (n, H/4, W/4) in float32.

        Args:
            coarsest: the projected map (1, C, h, w) of the image.
            attention: of its queries, (n, heads, h, w).
            maps: three finer maps (1, C, h, w), the coarsest first.
        """
        x = self._layer(2, self._normalize(1, self._join(coarsest, attention)))
        for number, finer in enumerate(maps, start=1):
            adapted = self._convolution(f"adapter{number}")(finer)
            x = adapted + F.interpolate(x, size=adapted.shape[2:], mode="nearest")
            x = self._layer(number + 2, x)
        return self.out_lay(x).squeeze(1).float()

    def _join(self, coarsest: Tensor, attention: Tensor) -> Tensor:
        """Return the first convolution of the map and the attention; the map's part serves all queries."""
        layer, width = self._convolution("lay1"), coarsest.shape[1]
        shared = F.conv2d(coarsest, layer.weight[:, :width], layer.bias, padding=1)
        return shared + F.conv2d(attention, layer.weight[:, width:], padding=1)

    def _layer(self, number: int, x: Tensor) -> Tensor:
        return self._normalize(number, self._convolution(f"lay{number}")(x))

    def _normalize(self, number: int, x: Tensor) -> Tensor:
        return F.relu_(self.get_submodule(f"gn{number}")(x))

    def _convolution(self, name: str) -> nn.Conv2d:
        layer = self.get_submodule(name)
        assert isinstance(layer, nn.Conv2d)
        return layer


class MaskSource(NamedTuple):
    """What the masks of a batch are computed of.

    `coarsest` (B, C, h, w) is the projected map, `cells` (B, S, C) the encoded one, `maps` (B, C, h, w) are
    three finer maps, the coarsest first; `blocked` (B, 1, S) is True for padding.
    """

    attention: MHAttentionMap
    head: MaskHeadSmallConv
    coarsest: Tensor
    cells: Tensor
    maps: list[Tensor]
    blocked: Tensor | None

    def masks(self, image: int, queries: Tensor) -> Tensor:
        """Return the mask logits (n, H/4, W/4) of queries (n, C) of an image, in float32."""
        finest = self.maps[-1].shape[2] * self.maps[-1].shape[3] * self.head.widths[-2]
        step = len(queries) if torch.is_grad_enabled() else max(1, VALUES_AT_ONCE // finest)
        return torch.cat([self._masks(image, some) for some in queries.split(max(1, step))])

    def _masks(self, image: int, queries: Tensor) -> Tensor:
        blocked = None if self.blocked is None else self.blocked[image]
        weights = self.attention(queries, self.cells[image], blocked)
        attention = weights.unflatten(-1, self.coarsest.shape[2:])
        only = slice(image, image + 1)
        return self.head(self.coarsest[only], attention, [finer[only] for finer in self.maps])
