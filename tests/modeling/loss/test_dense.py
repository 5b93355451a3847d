import pytest
import torch
from torch import nn

from mask2former.modeling.loss.dense import pad_masks, reduce_masks


@pytest.mark.parametrize("size, cells", [((32, 48), (8, 12)), ((30, 50), (8, 13)), ((5, 7), (2, 2))])
def test_reduced_masks_equal_nearest_interpolation_of_padded_ones(size, cells):
    masks = torch.rand(3, size[0] - 2, size[1] - 3) > 0.5
    padded = nn.functional.pad(masks.float(), (0, 3, 0, 2))
    expected = nn.functional.interpolate(padded[None], cells)[0]
    assert torch.equal(pad_masks(masks, size).float(), padded)
    assert torch.equal(reduce_masks(masks, size, cells), expected)


def test_no_masks_reduce_to_none():
    assert reduce_masks(torch.zeros(0, 8, 8, dtype=torch.bool), (8, 8), (2, 2)).shape == (0, 2, 2)
