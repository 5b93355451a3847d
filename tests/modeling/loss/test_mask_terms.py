import itertools
import math

import pytest
import torch

from mask2former.modeling.loss.mask_terms import MASK_LOSSES, mask_terms, pairwise_mask_terms, squared_dice


def terms_slowly(logits, targets, mask_loss):
    """Return both terms of one mask, cell by cell; a target between 0 and 1 mixes both cross-entropies."""
    loss = both = total = 0.0
    for logit, target in zip(logits.tolist(), targets.tolist(), strict=True):
        p = 1 / (1 + math.exp(-logit))
        inside, outside = -math.log(p), -math.log(1 - p)
        if mask_loss == "focal":
            inside, outside = 0.25 * (1 - p) ** 2 * inside, 0.75 * p**2 * outside
        loss += target * inside + (1 - target) * outside
        both += p * target
        total += p + target
    return loss / len(logits), 1 - (2 * both + 1) / (total + 1)


@pytest.mark.parametrize("mask_loss", MASK_LOSSES)
def test_pairwise_terms_equal_a_double_loop(mask_loss):
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 11, generator=random) * 3
    targets = torch.rand(2, 4, 11, generator=random)
    loss, dice = pairwise_mask_terms(logits, targets, mask_loss)
    for b, q, n in itertools.product(range(2), range(3), range(4)):
        expected = terms_slowly(logits[b, q], targets[b, n], mask_loss)
        assert (float(loss[b, q, n]), float(dice[b, q, n])) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("mask_loss", MASK_LOSSES)
def test_the_terms_of_matched_masks_equal_those_of_their_pairs(mask_loss):
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 4, 30, generator=random) * 3
    targets = (torch.rand(1, 4, 30, generator=random) > 0.5).float()
    pairs = torch.stack(pairwise_mask_terms(logits, targets, mask_loss)).diagonal(dim1=2, dim2=3)
    assert torch.allclose(torch.stack(mask_terms(logits, targets, mask_loss)), pairs, rtol=1e-4)


def test_dice_with_squares_equals_a_loop():
    random = torch.Generator().manual_seed(2)
    logits, targets = torch.randn(3, 11, generator=random) * 3, torch.rand(3, 11, generator=random)
    targets[2] = 0
    for found, image, target in zip(squared_dice(logits, targets), logits, targets, strict=True):
        p = [1 / (1 + math.exp(-logit)) for logit in image.tolist()]
        squares = sum(a * a for a in p) + sum(b * b for b in target.tolist()) + 0.002
        both = sum(a * b for a, b in zip(p, target.tolist(), strict=True))
        assert found.item() == pytest.approx(1 - 2 * both / squares, rel=1e-5)
