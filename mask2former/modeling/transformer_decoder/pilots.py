"""Mask-piloted training: queries that are told a target's class and mask, beside those that are matched.

MP-Former (Zhang et al., CVPR 2023). In training, each target of an image has a query of its own, a pilot,
made of an embedding of its class. In every layer a pilot attends inside its target's mask instead of its
previous prediction, and it shall predict that target. Noise on classes and masks keeps it from copying what
it was told. Queries that are matched do not see pilots, so predictions are what they would be without; groups
of pilots do not see each other.

Shapes: `B` images, `N` targets of an image (in batched tensors the largest number), or cells of levels, `G`
groups, `P` pilots, G for each target, group by group, `Q` queries that are matched, `K` classes, `H, W` the
padded image's sides, `h, w` those of a level.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mask2former.structures import Instances

COARSEST_STRIDE = 32  # of the memory, whose cells are to hold whole numbers of pixels
SEED_OFFSET = 1  # the criterion draws its points with the seed itself


class TrainingTargets(NamedTuple):
    """Targets of a batch, for a decoder that is told them, the padded size (H, W), and a seed for each image.

    Of a target, `gt_classes` (N,) and `gt_masks` (N, h, w) bool are read.
    """

    targets: Sequence[Instances]
    padded: tuple[int, int]
    seeds: Sequence[int]


class Pilots(NamedTuple):
    """Pilots of a batch.

    `classes` (B, P) are those that they are told; `exists` (B, P) is False for those that only fill up the
    batch. `masks` has for each image (N, H, W) bool. `generators` are the images' own, for noise on masks.
    """

    classes: Tensor
    exists: Tensor
    masks: list[Tensor]
    groups: int
    generators: list[torch.Generator]


def check_pilots(cfg: Any) -> None:
    """Raise ValueError if a config asks for pilots of a model that has none, or of batches of odd sides."""
    model = cfg.MODEL
    if not model.MASK_FORMER.DECODER.PILOT_GROUPS:
        return
    if model.META_ARCHITECTURE != "MaskFormer":
        raise ValueError(
            "MODEL.MASK_FORMER.DECODER.PILOT_GROUPS is for MODEL.META_ARCHITECTURE MaskFormer, not "
            f"{model.META_ARCHITECTURE}; set it to 0"
        )
    if model.MASK_FORMER.SIZE_DIVISIBILITY % COARSEST_STRIDE or not model.MASK_FORMER.SIZE_DIVISIBILITY:
        raise ValueError(
            "MODEL.MASK_FORMER.DECODER.PILOT_GROUPS needs MODEL.MASK_FORMER.SIZE_DIVISIBILITY to be a "
            f"multiple of {COARSEST_STRIDE}, not {model.MASK_FORMER.SIZE_DIVISIBILITY}"
        )


def draw_pilots(batch: TrainingTargets, groups: int, class_noise: float, num_classes: int) -> Pilots:
    """Return the pilots of a batch; in `class_noise` of the cases a pilot is told a random class."""
    targets = batch.targets
    generators = [
        torch.Generator(target.gt_classes.device).manual_seed(seed + SEED_OFFSET)
        for target, seed in zip(targets, batch.seeds, strict=True)
    ]
    drawn = []
    for target, generator in zip(targets, generators, strict=True):
        true = target.gt_classes.expand(groups, -1)
        noise = {"generator": generator, "device": true.device}
        random = torch.randint(num_classes, true.shape, **noise)
        drawn.append(torch.where(torch.rand(true.shape, **noise) < class_noise, random, true).T)
    classes = pad_sequence(drawn, batch_first=True)  # (B, N, G)
    counts = torch.tensor([len(target) for target in targets], device=classes.device)
    exists = torch.arange(classes.shape[1], device=classes.device) < counts[:, None]
    return Pilots(
        classes.transpose(1, 2).flatten(1),
        exists.repeat(1, groups),
        [_padded(target.gt_masks, batch.padded) for target in targets],
        groups,
        generators,
    )


def blocked_for_pilots(pilots: Pilots, shapes: Sequence[tuple[int, int]], mask_noise: float) -> Tensor:
    """Return the cells (B, P, N) bool of levels, one after another, that each pilot must not attend to.

    A cell is inside a mask that has a pixel there. Each is changed with the probability `mask_noise`, times
    the share of cells that are inside. A pilot without any cell attends to all.
    """
    inside = []
    for masks, generator in zip(pilots.masks, pilots.generators, strict=True):
        cells = torch.cat([_any_in_cells(masks, shape).flatten(1) for shape in shapes], 1)
        cells = cells.repeat(pilots.groups, 1)  # (G N, cells)
        if mask_noise:
            chance = mask_noise * cells.float().mean(1, keepdim=True)
            cells ^= torch.rand(cells.shape, generator=generator, device=cells.device) < chance
        inside.append(cells.unflatten(0, (pilots.groups, len(masks))).transpose(0, 1))
    blocked = ~pad_sequence(inside, batch_first=True).transpose(1, 2).flatten(1, 2)
    return blocked & ~blocked.all(-1, keepdim=True)


def blocked_queries(pilots: Pilots, num_queries: int) -> Tensor:
    """Return the queries (B, Q + P, Q + P) bool that each query must not attend to in self-attention.

    The Q queries that are matched see each other. Pilots see those, and the pilots of their own group.
    """
    count = pilots.classes.shape[1]
    group = torch.arange(count, device=pilots.classes.device) // max(1, count // pilots.groups)
    others = (group[:, None] != group) | ~pilots.exists[:, None]  # (B, P, P)
    of_pilots = F.pad(others, (num_queries, 0))
    matched = of_pilots.new_zeros(len(of_pilots), num_queries, num_queries + count)
    matched[..., num_queries:] = True
    return torch.cat([matched, of_pilots], 1)


def _padded(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Return masks (N, h, w) bool padded to (N, H, W)."""
    return F.pad(masks, (0, size[1] - masks.shape[2], 0, size[0] - masks.shape[1]))


def _any_in_cells(masks: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return which cells of a level (h, w) hold a pixel of each mask (N, H, W): (N, h, w) bool."""
    height, width = shape
    sides = (masks.shape[0], height, masks.shape[1] // height, width, masks.shape[2] // width)
    return masks.view(sides).any(4).any(2)
