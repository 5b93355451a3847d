"""The targets of pilots, which are known: nothing is matched (see `transformer_decoder.pilots`).

Shapes: `L` predictions, `B` images, `N` targets of an image (in batched tensors the largest number), `G`
groups, `P` pilots, G for each target, group by group, `K` classes, `T` targets of all pilots of the batch.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mask2former.modeling.loss.matcher import UNMATCHED
from mask2former.structures import Instances


def pilot_targets(targets: Sequence[Instances], num_pilots: int) -> tuple[int, list[Instances], Tensor]:
    """Return G, the targets of each image once for each group, and their pilots (B, P) or UNMATCHED."""
    most = max(len(target) for target in targets)
    groups = num_pilots // most if most else 1
    repeated, pilots = [], []
    for target in targets:
        classes, masks = target.gt_classes, target.gt_masks
        repeated.append(
            Instances(
                target.image_size,
                gt_classes=classes.repeat(groups),
                gt_masks=masks.repeat(groups, *[1] * (masks.ndim - 1)),
            )
        )
        first, own = (torch.arange(count, device=classes.device) for count in (groups, len(target)))
        pilots.append((most * first[:, None] + own).flatten())
    return groups, repeated, pad_sequence(pilots, batch_first=True, padding_value=UNMATCHED)


def pilot_class_loss(class_logits: Tensor, pilots: Tensor, targets: Sequence[Instances]) -> Tensor:
    """Return the cross-entropy (L,), summed over targets, of logits (L, B, P, K+1); the rest as above."""
    labels = torch.cat([target.gt_classes for target in targets])
    exists = pilots != UNMATCHED
    images = torch.arange(len(pilots), device=pilots.device)[:, None].expand_as(pilots)
    logits = class_logits[:, images[exists], pilots[exists]]  # (L, T, K+1)
    ce = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), reduction="none")
    return ce.view(len(logits), -1).sum(1)
