import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mask2former.modeling.loss import points as points_module
from mask2former.modeling.loss.points import (
    move_into,
    object_boxes,
    random_points,
    sample_maps,
    sample_masks,
    sample_masks_at_shared_points,
    uncertain_points,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def read_slowly(image, x, y):
    """Interpolate at x and y, in pixels, between pixel centers; the image is zero outside."""
    height, width = image.shape
    left, top = math.floor(x - 0.5), math.floor(y - 0.5)
    total = 0.0
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < height and 0 <= column < width:
                weight = (1 - abs(y - 0.5 - row)) * (1 - abs(x - 0.5 - column))
                total += weight * float(image[row, column])
    return total


@settings(max_examples=40)
@given(
    sides=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    padding=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    seed=st.integers(0, 1000),
)
def test_sampled_masks_equal_explicit_loops_and_padded_masks(sides, padding, seed):
    random = generator(seed)
    masks = torch.rand(3, *sides, generator=random) > 0.5
    padded_size = (sides[0] + padding[0], sides[1] + padding[1])
    points = random_points(3, 2, 4, generator=random)
    values = sample_masks(masks, points, padded_size)
    for mask, own_points, own_values in zip(masks, points, values, strict=True):
        for (x, y), value in zip(own_points.reshape(-1, 2).tolist(), own_values.flatten(), strict=True):
            slow = read_slowly(mask, x * padded_size[1], y * padded_size[0])
            assert float(value) == pytest.approx(slow, abs=1e-5)
    padded = torch.nn.functional.pad(masks, (0, padding[1], 0, padding[0]))
    assert torch.allclose(sample_masks(padded, points, padded_size), values, atol=1e-5)
    assert torch.allclose(sample_maps(padded.float()[:, None], points)[:, 0], values, atol=1e-5)


def test_a_mask_of_ones_is_a_quarter_at_the_corner():
    ones = torch.ones(1, 6, 9, dtype=torch.bool)
    corner_edge_middle = torch.tensor([[[[0.0, 0.0], [0.5, 0.0], [0.5, 0.5]]]])
    assert sample_masks(ones, corner_edge_middle, (6, 9)).flatten().tolist() == [0.25, 0.5, 1.0]


def test_many_masks_are_sampled_a_few_at_a_time(monkeypatch):
    masks = torch.rand(5, 4, 4) > 0.5
    points = random_points(5, 1, 7, generator=generator())
    at_once = sample_masks(masks, points, (4, 4))
    monkeypatch.setattr(points_module, "MASK_PIXELS_AT_ONCE", 33)
    assert torch.equal(sample_masks(masks, points, (4, 4)), at_once)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_shared_points_give_the_values_of_separate_sampling(count, monkeypatch):
    monkeypatch.setattr(points_module, "MASK_PIXELS_AT_ONCE", 100)  # two masks at a time
    masks = torch.rand(count, 6, 8, generator=generator()) > 0.5
    points = random_points(3, 7, generator=generator())
    expected = sample_masks(masks, points.expand(count, -1, -1, -1), (9, 8))
    torch.testing.assert_close(sample_masks_at_shared_points(masks, points, (9, 8)), expected)


def test_nothing_to_sample_gives_empty_results():
    masks = torch.zeros(0, 4, 4, dtype=torch.bool)
    assert sample_masks(masks, torch.zeros(0, 2, 7, 2), (8, 8)).shape == (0, 2, 7)
    assert draw_uncertain(torch.zeros(0, 8, 8)).shape == (0, 40, 2)


def draw_uncertain(logits, num_points=40, seed=0, **ratios):
    ratios = {"oversample_ratio": 3.0, "importance_sample_ratio": 0.75, **ratios}
    return uncertain_points(logits, num_points, generator=generator(seed), **ratios)


def test_important_points_lie_at_the_boundary():
    edge = 0.7
    ramp = (torch.arange(64) + 0.5) / 64 - edge  # the logit is x - edge, whatever y
    points = draw_uncertain(ramp.expand(2, 64, 64), num_points=400)
    assert points.shape == (2, 400, 2)
    distance = (points[..., 0] - edge).abs()
    inner = ((points[..., 1] - 0.5).abs() < 0.49) & (points[..., 0] < 0.99)  # at the border zeros mix in
    # Of 1200 uniform points the nearest 300 lie within 300 / 1200 / 2 = 0.125; the 100 others lie anywhere.
    assert distance[:, :300][inner[:, :300]].max() < 0.16
    assert distance[:, 300:].max() > 0.5
    assert (points >= 0).all() and (points < 1).all()


def test_uncertainty_is_measured_after_interpolation():
    logits = torch.tensor([[[-1.0, 1.0]]]).expand(1, 2, 2)  # undecided only between the two columns
    points = draw_uncertain(logits, num_points=20, oversample_ratio=10.0, importance_sample_ratio=1.0)
    inside = (points[..., 1] > 0.25) & (points[..., 1] < 0.75)
    assert ((points[..., 0][inside] - 0.5).abs() < 0.2).all()


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_extreme_shares_keep_the_number_of_points(ratio):
    assert draw_uncertain(torch.randn(3, 5, 5), importance_sample_ratio=ratio).shape == (3, 40, 2)


def test_points_follow_from_the_seed():
    logits = torch.randn(2, 8, 8)
    assert torch.equal(draw_uncertain(logits, seed=5), draw_uncertain(logits, seed=5))
    assert not torch.equal(draw_uncertain(logits, seed=5), draw_uncertain(logits, seed=6))


def test_points_do_not_depend_on_how_many_maps_are_drawn_at_a_time(monkeypatch):
    logits = torch.randn(5, 8, 8)
    at_once = draw_uncertain(logits)
    monkeypatch.setattr(points_module, "CANDIDATES_AT_ONCE", 250)  # two maps of 120
    assert torch.equal(draw_uncertain(logits), at_once)


def test_surroundings_of_objects_in_a_padded_image():
    """By hand, in an image of 10 x 20 whose masks are 8 x 16: sides of 2 and 4 pixels and half of them."""
    masks = torch.zeros(3, 8, 16, dtype=torch.bool)
    masks[0, 3:5, 4:8] = True
    masks[1, 0, 15] = True
    boxes = object_boxes(masks, (10, 20))
    assert torch.allclose(boxes[0], torch.tensor([2 / 20, 2 / 10, 10 / 20, 6 / 10]))
    assert torch.allclose(boxes[1], torch.tensor([14.5 / 20, 0, 16.5 / 20, 1.5 / 10]))
    assert torch.equal(boxes[2], torch.tensor([0.0, 0, 1, 1]))


def test_surroundings_of_a_track_hold_the_object_in_all_frames():
    masks = torch.rand(4, 3, 9, 7, generator=generator()) < 0.02
    assert torch.equal(object_boxes(masks, (16, 16)), object_boxes(masks.any(1), (16, 16)))
    assert object_boxes(masks[:0], (16, 16)).shape == (0, 4)


def test_a_share_of_the_points_is_moved_into_the_boxes():
    boxes = torch.tensor([[0.5, 0.5, 0.75, 1.0], [0.0, 0.0, 0.1, 0.1]])[:, None]
    points = random_points(2, 8, generator=generator())
    before = points.clone()
    move_into(points, boxes, 0.5)
    assert torch.equal(points[:, 4:], before[:, 4:])
    assert torch.allclose(points[:, :4], boxes[..., :2] + before[:, :4] * (boxes[..., 2:] - boxes[..., :2]))


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_points_of_a_small_object_fall_around_it(ratio, monkeypatch):
    """With logits that are the same everywhere, so that no point is more uncertain than another."""
    monkeypatch.setattr(points_module, "CANDIDATES_AT_ONCE", 400)  # two maps at a time
    boxes = torch.tensor([[0.1, 0.1, 0.14, 0.14], [0.6, 0.2, 0.66, 0.3], [0.9, 0.9, 1.0, 1.0]])
    options = {"oversample_ratio": 2.0, "importance_sample_ratio": 0.0, "generator": generator()}
    drawn = uncertain_points(torch.zeros(3, 4, 4), 100, **options, boxes=boxes, object_ratio=ratio)
    inside = ((drawn >= boxes[:, None, :2]) & (drawn <= boxes[:, None, 2:])).all(-1).float().mean(1)
    assert (inside >= ratio).all() and (inside <= ratio + 0.1).all()


def test_uncertain_candidates_are_also_drawn_around_the_object():
    """Logits are zero in the box alone: all important points lie there, many or few candidates."""
    logits = torch.full((1, 32, 32), 9.0)
    logits[0, 4:8, 4:8] = 0
    boxes = torch.tensor([[4 / 32, 4 / 32, 8 / 32, 8 / 32]])
    options = {"oversample_ratio": 3.0, "importance_sample_ratio": 1.0}
    share = [
        ((points >= boxes[:, None, :2]) & (points <= boxes[:, None, 2:])).all(-1).float().mean()
        for points in (
            uncertain_points(
                logits, 60, **options, generator=generator(), boxes=boxes, object_ratio=object_ratio
            )
            for object_ratio in (0.0, 0.5)
        )
    ]
    assert share[0] < 0.2 and share[1] == 1
