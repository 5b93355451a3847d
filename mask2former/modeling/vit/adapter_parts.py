"""The parts of ViT-Adapter: convolutions that describe an image finely, and its exchange with the patches.

"Vision Transformer Adapter for Dense Predictions" (ICLR 2023). Parameters are named as in its published
checkpoints.

Shapes: `B` images, `P` patches, `S` cells of the prior's maps at strides 8, 16 and 32 together, `C` channels.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mask2former.modeling.layers.activation_checkpointing import checkpoint_activations
from mask2former.modeling.layers.attention import MapSequence, MSDeformAttn
from mask2former.modeling.layers.drop_path import DropPath
from mask2former.modeling.layers.norm import get_norm

PRIOR_LEVELS = 3  # the maps at strides 8, 16 and 32, which exchange with the patches
PRIOR_WIDTH = 64  # of the first convolutions; as all constants here, in every published model
NUM_POINTS = 4  # per head and level
FFN_RATIO = 0.25  # hidden width of an extractor's feed-forward network over that of a token
NORM_EPS = 1e-6


class Geometry(NamedTuple):
    """Geometry of the two sequences: the patches (one map), and the prior's cells (three maps)."""

    patches: MapSequence
    prior: MapSequence


class SpatialPrior(nn.Module):
    """Convolutions to maps of one width at strides 4, 8, 16 and 32.

    Args:
        width: C.
        norm: of the convolutions, as in configs.

    Raises:
        ValueError: an unknown norm.
    """

    def __init__(self, *, in_channels: int, width: int, norm: str) -> None:
        super().__init__()
        first = PRIOR_WIDTH
        self.stem = nn.Sequential(
            *_convolution(in_channels, first, 2, norm),
            *_convolution(first, first, 1, norm),
            *_convolution(first, first, 1, norm),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        )
        self.conv2 = nn.Sequential(*_convolution(first, 2 * first, 2, norm))
        self.conv3 = nn.Sequential(*_convolution(2 * first, 4 * first, 2, norm))
        self.conv4 = nn.Sequential(*_convolution(4 * first, 4 * first, 2, norm))
        self.fc1 = nn.Conv2d(first, width, 1)
        self.fc2 = nn.Conv2d(2 * first, width, 1)
        self.fc3 = nn.Conv2d(4 * first, width, 1)
        self.fc4 = nn.Conv2d(4 * first, width, 1)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images (B, 3, height, width) to four maps (B, C, height / stride, width / stride)."""
        stages = (
            (self.stem, self.fc1),
            (self.conv2, self.fc2),
            (self.conv3, self.fc3),
            (self.conv4, self.fc4),
        )
        x, maps = images, []
        for stage, projection in stages:
            x = stage(x)
            maps.append(projection(x))
        return maps


def _convolution(inputs: int, outputs: int, stride: int, norm: str) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Return a 3x3 convolution, its norm and its activation."""
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=norm == "")
    return convolution, get_norm(norm, outputs) or nn.Identity(), nn.ReLU(inplace=True)


class Injector(nn.Module):
    """The addition to each patch of what it attends to among the prior's cells, times `gamma`, at first 0."""

    def __init__(self, *, width: int, num_heads: int, value_ratio: float) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.feat_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = _attention(width, num_heads, PRIOR_LEVELS, value_ratio)
        self.gamma = nn.Parameter(torch.zeros(width))

    def forward(self, patches: Tensor, cells: Tensor, geometry: Geometry) -> Tensor:
        """Update patches (B, P, C) from cells (B, S, C)."""
        values = self.attn.project(self.feat_norm(cells))
        centers = geometry.patches.centers
        attended = self.attn.attend(self.query_norm(patches), values, geometry.prior.shapes, centers)
        return patches + self.gamma * attended


class Extractor(nn.Module):
    """The addition to each of the prior's cells of what it attends to among the patches, then a `ConvMlp`."""

    def __init__(self, *, width: int, num_heads: int, value_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.feat_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = _attention(width, num_heads, 1, value_ratio)
        self.ffn_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.ffn = ConvMlp(width, int(width * FFN_RATIO))
        self.drop_path = DropPath(drop_path)

    def forward(self, cells: Tensor, patches: Tensor, geometry: Geometry) -> Tensor:
        """Update cells (B, S, C) from patches (B, P, C)."""
        values = self.attn.project(self.feat_norm(patches))
        centers = geometry.prior.centers
        attended = self.attn.attend(self.query_norm(cells), values, geometry.patches.shapes, centers)
        cells = cells + attended
        return cells + self.drop_path(self.ffn(self.ffn_norm(cells), geometry.prior))


class ConvMlp(nn.Module):
    """A feed-forward network with a depthwise convolution on each map between its layers."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, cells: Tensor, maps: MapSequence) -> Tensor:
        """Map cells (B, S, C) of the maps to (B, S, C)."""
        convolved = [self.dwconv(x).flatten(2).mT for x in split_maps(self.fc1(cells), maps)]
        return self.fc2(F.gelu(torch.cat(convolved, dim=1)))


def split_maps(cells: Tensor, maps: MapSequence) -> list[Tensor]:
    """Return the maps (B, C, H, W) whose concatenated cells (B, S, C) are given, channels last in memory."""
    parts = cells.split([height * width for height, width in maps.shapes], dim=1)
    return [
        part.unflatten(1, shape).permute(0, 3, 1, 2) for part, shape in zip(parts, maps.shapes, strict=True)
    ]


def _attention(width: int, num_heads: int, levels: int, value_ratio: float) -> MSDeformAttn:
    return MSDeformAttn(
        width=width, num_heads=num_heads, num_levels=levels, num_points=NUM_POINTS, value_ratio=value_ratio
    )


class Interaction(nn.Module):
    """The exchange around one group of blocks: injection before it, extraction after it.

    Args:
        extra: further extractors, after the last group.
        drop_path: of the extractors.
        checkpointing: recompute injector and extractors in the backward pass.
    """

    def __init__(
        self,
        *,
        width: int,
        num_heads: int,
        value_ratio: float,
        drop_path: float,
        extra: int,
        checkpointing: bool,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing

        def extractor() -> Extractor:
            return Extractor(width=width, num_heads=num_heads, value_ratio=value_ratio, drop_path=drop_path)

        self.injector = Injector(width=width, num_heads=num_heads, value_ratio=value_ratio)
        self.extractor = extractor()
        self.extra_extractors = nn.ModuleList(extractor() for _ in range(extra))

    def inject(self, patches: Tensor, cells: Tensor, geometry: Geometry) -> Tensor:
        """Return the patches (B, P, C) that the group's blocks get."""
        return self._call(self.injector, patches, cells, geometry)

    def extract(self, cells: Tensor, patches: Tensor, geometry: Geometry) -> Tensor:
        """Return the cells (B, S, C) after the group's blocks have changed the patches."""
        for module in (self.extractor, *self.extra_extractors):
            cells = self._call(module, cells, patches, geometry)
        return cells

    def _call(self, module: nn.Module, *inputs: Tensor | Geometry) -> Tensor:
        result: Tensor = checkpoint_activations(module, *inputs) if self.checkpointing else module(*inputs)
        return result
