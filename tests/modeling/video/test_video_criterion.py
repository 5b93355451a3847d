"""Matching and losses of clips against a slow version, and against those of images."""

import itertools

import pytest
import torch
from torch import nn

from mask2former.modeling.loss.criterion import SetCriterion
from mask2former.modeling.loss.points import random_points, uncertain_points
from mask2former.modeling.predictions import Prediction, Predictions
from mask2former.modeling.video import VideoSetCriterion
from mask2former.structures import Instances

SIZE, FRAMES, QUERIES, LAYERS, CLASSES, POINTS = (32, 48), 3, 5, 2, 3, 50
OPTIONS = {
    **{"num_classes": CLASSES, "class_weight": 2.0, "mask_weight": 5.0, "dice_weight": 5.0},
    **{"no_object_weight": 0.1, "num_points": POINTS, "oversample_ratio": 3.0},
    "importance_sample_ratio": 0.75,
}


def drawn_predictions(num_clips, num_frames=FRAMES):
    random = torch.Generator().manual_seed(0)
    shapes = [
        *[(num_clips, QUERIES, CLASSES + 1)] * LAYERS,
        *[(num_clips, QUERIES, 6)] * LAYERS,
        (num_clips, 6, num_frames, SIZE[0] // 4, SIZE[1] // 4),
    ]
    drawn = [torch.randn(shape, generator=random).requires_grad_() for shape in shapes]
    layers = [Prediction(*pair) for pair in zip(drawn[:LAYERS], drawn[LAYERS:-1], strict=True)]
    return Predictions(layers, drawn[-1])


def drawn_targets(count, size=SIZE, num_frames=FRAMES, seed=0):
    random = torch.Generator().manual_seed(seed)
    return Instances(
        size,
        gt_classes=torch.randint(CLASSES, (count,), generator=random),
        gt_masks=torch.rand(count, num_frames, *size, generator=random) > 0.5,
    )


def read(maps, points):
    """Sample maps (M, h, w) of the padded frame, each at its points (M, P, 2)."""
    return nn.functional.grid_sample(maps[:, None].float(), 2 * points[:, None] - 1, align_corners=False)[
        :, 0, 0
    ]


def slow_terms(logits, values):
    """Return cross-entropy and dice of one mask's values at points."""
    p = logits.sigmoid()
    loss = -(values * p.log() + (1 - values) * (1 - p).log())
    return loss.mean(), 1 - (2 * (p * values).sum() + 1) / (p.sum() + values.sum() + 1)


def slow_losses(predictions, targets, seeds):
    """Compute clip by clip, layer by layer, frame by frame on dense logits and padded masks."""
    total = sum(len(target) for target in targets)
    sums = torch.zeros(LAYERS, 4)  # classes, their weights, masks, dice
    for clip, (target, seed) in enumerate(zip(targets, seeds, strict=True)):
        generator = torch.Generator().manual_seed(seed)
        at = random_points(LAYERS, POINTS, generator=generator)
        height, width = target.gt_masks.shape[2:]
        masks = nn.functional.pad(target.gt_masks, (0, SIZE[1] - width, 0, SIZE[0] - height)).float()
        matched = []
        for layer in range(LAYERS):
            dense = predictions.mask_logits(layer)[clip]  # (Q, T, h, w)
            probabilities = predictions.layers[layer].class_logits[clip].softmax(-1)
            cost = torch.zeros(QUERIES, len(target))
            for q, n in itertools.product(range(QUERIES), range(len(target))):
                same = at[layer].expand(FRAMES, -1, -1)
                pair = read(dense[q], same).flatten(), read(masks[n], same).flatten()
                cost[q, n] = 5 * sum(slow_terms(*pair)) - 2 * probabilities[q, target.gt_classes[n]]
            chosen = min(
                itertools.permutations(range(QUERIES), len(target)),
                key=lambda choice: sum(float(cost[q, n].detach()) for n, q in enumerate(choice)),
            )
            wanted = dict(zip(chosen, target.gt_classes.tolist(), strict=True))
            for q in range(QUERIES):
                weight = 1.0 if q in wanted else 0.1
                sums[layer, 0] = sums[layer, 0] - weight * probabilities[q, wanted.get(q, CLASSES)].log()
                sums[layer, 1] += weight
            matched.append(dense[list(chosen)])
        maps = torch.cat(matched).flatten(0, 1)  # layer by layer, track by track, frame by frame
        own = uncertain_points(
            maps, POINTS, oversample_ratio=3.0, importance_sample_ratio=0.75, generator=generator
        )
        pairs = zip(read(maps, own), read(masks.flatten(0, 1).repeat(LAYERS, 1, 1), own), strict=True)
        for row, pair in enumerate(pairs):
            loss, dice = slow_terms(*pair)
            layer = row // (len(target) * FRAMES)
            sums[layer, 2] = sums[layer, 2] + loss / total
            sums[layer, 3] = sums[layer, 3] + dice / total
    ce = 2 * sums[:, 0] / sums[:, 1]
    terms = {"loss_ce": ce, "loss_mask": 5 * sums[:, 2], "loss_dice": 5 * sums[:, 3]}
    return {f"{key}{suffix}": terms[key][layer] for key in terms for layer, suffix in ((0, "_0"), (1, ""))}


@pytest.mark.parametrize("sizes", [[SIZE, SIZE], [(20, 48), (32, 30)]], ids=["same", "padded"])
def test_losses_and_gradients_equal_the_slow_version(sizes):
    targets = [drawn_targets(count, size, seed=count) for count, size in zip((2, 3), sizes, strict=True)]
    first, second = drawn_predictions(2), drawn_predictions(2)
    found = VideoSetCriterion(**OPTIONS)(first, targets, SIZE, [7, 8])
    expected = slow_losses(second, targets, [7, 8])
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=1e-4, rtol=1e-4, msg=key)
    sum(found.values()).backward()
    sum(expected.values()).backward()
    torch.testing.assert_close(first.mask_features.grad, second.mask_features.grad, atol=1e-4, rtol=1e-3)
    for ours, slow in zip(first.layers, second.layers, strict=True):
        torch.testing.assert_close(ours.mask_embed.grad, slow.mask_embed.grad, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(ours.class_logits.grad, slow.class_logits.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_a_clip_of_one_frame_has_the_losses_of_an_image(ratio):
    options = {**OPTIONS, "object_point_ratio": ratio}
    clips, targets = drawn_predictions(2, num_frames=1), [drawn_targets(n, num_frames=1) for n in (2, 3)]
    images = Predictions(clips.layers, clips.mask_features.squeeze(2))
    alone = [Instances(SIZE, gt_classes=t.gt_classes, gt_masks=t.gt_masks[:, 0]) for t in targets]
    found = VideoSetCriterion(**options)(clips, targets, SIZE, [1, 2])
    expected = SetCriterion(**options)(images, alone, SIZE, [1, 2])
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, msg=key)


def test_a_repeated_frame_doubles_the_loss_of_masks_and_leaves_that_of_classes():
    """All points of the loss are drawn anywhere, so that only their number differs; masks are constant."""
    options = {**OPTIONS, "importance_sample_ratio": 0.0}
    one = drawn_predictions(1, num_frames=1)
    one.mask_features.data[:] = one.mask_features.data.mean((3, 4), keepdim=True)
    targets = Instances(
        SIZE, gt_classes=torch.tensor([0, 2]), gt_masks=torch.ones(2, 1, *SIZE, dtype=torch.bool)
    )
    two = Predictions(one.layers, one.mask_features.repeat(1, 1, 2, 1, 1))
    twice = Instances(SIZE, gt_classes=targets.gt_classes, gt_masks=targets.gt_masks.repeat(1, 2, 1, 1))
    first = VideoSetCriterion(**options)(one, [targets], SIZE, [1])
    second = VideoSetCriterion(**options)(two, [twice], SIZE, [1])
    torch.testing.assert_close(second["loss_ce"], first["loss_ce"])
    torch.testing.assert_close(second["loss_dice"], 2 * first["loss_dice"], rtol=0.02, atol=0.02)
    torch.testing.assert_close(second["loss_mask"], 2 * first["loss_mask"], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("counts", [(0, 0), (0, 2), (7, 1)], ids=["none", "some", "too many"])
def test_every_batch_gives_all_terms_and_gradients(counts):
    predictions = drawn_predictions(2)
    targets = [drawn_targets(count, seed=i) for i, count in enumerate(counts)]
    losses = VideoSetCriterion(**OPTIONS)(predictions, targets, SIZE)
    assert len(losses) == 3 * LAYERS
    sum(losses.values()).backward()
    assert predictions.mask_features.grad.isfinite().all()
    assert (float(losses["loss_mask"].detach()) == 0) == (sum(counts) == 0)
