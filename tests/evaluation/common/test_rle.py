"""Masks that overlap much: the first is kept."""

import pytest
import torch

from mask2former.evaluation.common.rle import distinct_masks
from mask2former.structures import RunLengthMasks

WIDTH = 40


@pytest.mark.parametrize(
    ("spans", "max_iou", "kept"),
    [
        ([(0, 10), (0, 10), (20, 30)], 0.5, [0, 2]),
        ([(0, 10), (0, 10), (20, 30)], 1.0, [0, 1, 2]),
        ([(0, 10), (0, 20)], 0.5, [0, 1]),  # exactly 1/2
        ([(0, 10), (0, 20)], 0.49, [0]),
        ([(0, 10), (9, 20)], 0.0, [0]),
        ([(0, 10), (3, 13), (6, 16)], 0.5, [0, 2]),  # the third overlaps much with the second alone
        ([(5, 5), (5, 5)], 0.0, [0, 1]),  # empty
        ([], 0.5, []),
    ],
)
def test_of_masks_that_overlap_much_the_first_is_kept(spans, max_iou, kept):
    """Masks are spans of the pixels of one row."""
    runs = [torch.tensor([span] if span[0] < span[1] else []).view(-1, 2).long() for span in spans]
    masks = RunLengthMasks((1, WIDTH), runs)
    assert distinct_masks(masks, max_iou) == distinct_masks(masks.dense(), max_iou) == kept


def test_masks_of_a_huge_image_are_never_dense(monkeypatch):
    monkeypatch.setattr(RunLengthMasks, "columns", None)
    side = 40_000  # 1.6 GB as a dense mask
    squares = [
        [[x * side, x * side + 20_000] for x in range(left, left + 20_000)] for left in (0, 1_000, 20_000)
    ]
    masks = RunLengthMasks((side, side), [torch.tensor(runs) for runs in squares])
    assert distinct_masks(masks, 0.5) == [0, 2]
