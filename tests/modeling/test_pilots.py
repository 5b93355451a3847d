"""Mask-piloted training: what pilots see and must not see, by hand, and that matched queries ignore them."""

import pytest
import torch
import torch.nn.functional as F
from test_transformer_decoder import CLASSES, QUERIES, build, draw_inputs
from tiny_runs import CONFIG
from tiny_runs import OPTIONS as TINY

from mask2former.config import load_config
from mask2former.engine.build import build_model
from mask2former.modeling.loss.criterion import SetCriterion
from mask2former.modeling.loss.dense import dense_mask_terms
from mask2former.modeling.transformer_decoder.pilots import (
    TrainingTargets,
    blocked_for_pilots,
    blocked_queries,
    check_pilots,
    draw_pilots,
)
from mask2former.structures import Instances
from mask2former.weights.load import load_weights
from mask2former.weights.read import Checkpoint

SIZE = (64, 96)  # of the padded image of `draw_inputs`
COUNTS = (3, 1)
LOSS = {"class_weight": 2.0, "mask_weight": 5.0, "dice_weight": 5.0, "no_object_weight": 0.1}
POINTS = {"num_points": 50, "oversample_ratio": 3.0, "importance_sample_ratio": 0.75}
DECODER = "MODEL.MASK_FORMER.DECODER"
EXACT = {"pilot_class_noise": 0.0, "pilot_mask_noise": 0.0}


def drawn_target(count, seed=0):
    random = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, 60, 90, dtype=torch.bool)  # smaller than the padded image
    for mask in masks:
        top, left = (int(torch.randint(0, side, (), generator=random)) for side in (50, 80))
        mask[top : top + 12, left : left + 12] = True
    return Instances((60, 90), gt_classes=torch.randint(CLASSES, (count,), generator=random), gt_masks=masks)


def batch(counts=COUNTS):
    seeds = range(len(counts))
    return TrainingTargets(
        [drawn_target(n, seed) for n, seed in zip(counts, seeds, strict=True)], SIZE, [*seeds]
    )


def drawn(groups=1, class_noise=0.0, counts=COUNTS):
    return draw_pilots(batch(counts), groups, class_noise, CLASSES)


@pytest.mark.parametrize("fine_layers", [0, 2])
def test_matched_queries_do_not_see_pilots(fine_layers):
    with_pilots, without = (build(pilot_groups=groups, fine_layers=fine_layers) for groups in (2, 0))
    without.load_state_dict({k: v for k, v in with_pilots.state_dict().items() if k != "pilot_embed.weight"})
    told = with_pilots(*draw_inputs(), batch())
    plain = without(*draw_inputs())
    assert plain.pilots is None and len(told.pilots) == len(plain.layers)
    for layer, other in zip(told.layers, plain.layers, strict=True):
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(layer[:3], other[:3], strict=True))


def test_groups_of_pilots_do_not_see_each_other():
    one, two = (build(pilot_groups=groups, **EXACT)(*draw_inputs(), batch()).pilots[-1] for groups in (1, 2))
    first, second = two.class_logits.split(max(COUNTS), dim=1)
    assert torch.allclose(first, second, atol=1e-6)  # without noise they are told the same
    assert torch.allclose(one.class_logits, first, atol=1e-6)


def test_pilots_do_not_depend_on_the_other_image_of_the_batch():
    decoder = build(pilot_groups=2, pilot_class_noise=0.5, pilot_mask_noise=0.5)
    memory, features = draw_inputs()
    both = decoder(memory, features, batch()).pilots[-1].class_logits
    targets = batch()
    alone = decoder(
        [level[1:] for level in memory],
        features[1:],
        TrainingTargets(targets.targets[1:], SIZE, targets.seeds[1:]),
    )
    own = both[1].unflatten(0, (2, max(COUNTS)))[:, 0]  # the other places only fill up the batch
    assert torch.allclose(alone.pilots[-1].class_logits[0], own, atol=1e-5)


def test_a_pilot_attends_to_the_cells_with_a_pixel_of_its_mask():
    """By hand, cell by cell; each group is told the same, and places that fill up the batch see all."""
    shapes = [(2, 3), (8, 12)]
    pilots = drawn(groups=2)
    blocked = blocked_for_pilots(pilots, shapes, 0.0)
    assert blocked.shape == (2, 2 * max(COUNTS), 2 * 3 + 8 * 12)
    for image, target in enumerate(batch().targets):
        for group in range(2):
            for number, mask in enumerate(target.gt_masks):
                expected = []
                for height, width in shapes:
                    side = SIZE[0] // height
                    expected += [
                        not mask[y * side : (y + 1) * side, x * side : (x + 1) * side].any()
                        for y in range(height)
                        for x in range(width)
                    ]
                assert blocked[image, group * max(COUNTS) + number].tolist() == expected
    assert not blocked[1, [1, 2, 4, 5]].any()


def test_pilots_are_told_their_masks_at_stride_4_too():
    decoder, seen = build(pilot_groups=1, fine_layers=1, **EXACT), []
    decoder.transformer_cross_attention_layers[-1].register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[2])
    )
    decoder(*draw_inputs(), batch())
    assert seen[0].shapes == ((16, 24),)
    for image, target in enumerate(batch().targets):
        masks = F.pad(target.gt_masks, (0, 6, 0, 4)).float()
        blocked = F.max_pool2d(masks, 4).flatten(1) == 0
        assert torch.equal(seen[0].blocked_for_pilots[image, : len(target)], blocked)


def test_an_empty_mask_lets_its_pilot_attend_to_all_cells():
    targets = batch((1,))
    targets.targets[0].gt_masks[:] = False
    assert not blocked_for_pilots(draw_pilots(targets, 1, 0.0, CLASSES), [(8, 12)], 0.2).any()


def test_noise_changes_classes_and_cells_as_often_as_asked():
    many = TrainingTargets([drawn_target(400)], SIZE, [3])
    true = many.targets[0].gt_classes
    changed = draw_pilots(many, 5, 0.6, CLASSES).classes.view(5, -1) != true
    assert changed.float().mean().item() == pytest.approx(0.6 * (1 - 1 / CLASSES), abs=0.03)
    pilots = draw_pilots(many, 1, 0.0, CLASSES)
    pilots.masks[0][:, :32] = True  # half of the image and more
    exact, noisy = (blocked_for_pilots(pilots, [(8, 12)], noise) for noise in (0.0, 0.4))
    share = (~exact).float().mean().item()
    assert (exact ^ noisy).float().mean().item() == pytest.approx(0.4 * share, abs=0.02)


def test_what_each_query_may_not_attend_to():
    """By hand: two matched queries, then two groups of two pilots, the last of the second image missing."""
    blocked = blocked_queries(drawn(groups=2, counts=(2, 1)), 2)
    both = [[0, 0, 1, 1, 1, 1]] * 2 + [[0, 0, 0, 0, 1, 1]] * 2 + [[0, 0, 1, 1, 0, 0]] * 2
    assert blocked[0].int().tolist() == both
    one = [[0, 0, 1, 1, 1, 1]] * 2 + [[0, 0, 0, 1, 1, 1]] * 2 + [[0, 0, 1, 1, 0, 1]] * 2
    assert blocked[1].int().tolist() == one


@pytest.mark.parametrize("counts", [(3, 1), (0, 2), (0, 0)])
def test_losses_of_pilots_equal_a_slow_version(counts):
    """On whole masks, which need no random points: a loop over targets and groups."""
    groups, criterion = (
        2,
        SetCriterion(num_classes=CLASSES, **LOSS, **POINTS, match_on="masks", loss_on="masks"),
    )
    decoder = build(pilot_groups=groups)
    told = batch(counts)
    predictions = decoder(*draw_inputs(), told)
    losses = criterion(predictions, told.targets, SIZE)
    total = max(1, groups * sum(counts))
    for number, layer in enumerate(predictions.pilots):
        ce = mask_loss = dice = 0.0
        for image, target in enumerate(told.targets):
            for group in range(groups):
                for place in range(len(target)):
                    pilot = group * max(counts) + place
                    logits = layer.class_logits[image, pilot]
                    ce += F.cross_entropy(logits, target.gt_classes[place]).item()
                    terms = dense_mask_terms(
                        layer.mask_embed[image, pilot].view(1, 1, -1),
                        predictions.mask_features[image],
                        target.gt_masks[place : place + 1],
                        SIZE,
                        "cross_entropy",
                    )
                    mask_loss, dice = mask_loss + terms[0].item(), dice + terms[1].item()
        suffix = "" if number == len(predictions.pilots) - 1 else f"_{number}"
        for term, value, weight in (("ce", ce, 2.0), ("mask", mask_loss, 5.0), ("dice", dice, 5.0)):
            assert losses[f"loss_pilot_{term}{suffix}"].item() == pytest.approx(
                weight * value / total, abs=1e-4
            )
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in decoder.parameters())


def test_matched_queries_have_the_losses_that_they_have_without_pilots():
    criterion = SetCriterion(num_classes=CLASSES, **LOSS, **POINTS)
    decoder, told = build(pilot_groups=1), batch()
    losses = [
        criterion(predictions, told.targets, SIZE, [1, 2])
        for predictions in (decoder(*draw_inputs(), told), decoder(*draw_inputs()))
    ]
    assert losses[1].keys() == {key for key in losses[0] if "pilot" not in key}
    assert all(losses[0][key].item() == pytest.approx(losses[1][key].item(), rel=1e-5) for key in losses[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention": "cross"}, "PILOT_GROUPS needs ATTENTION masked"),
        ({"learned_queries": False}, "PILOT_GROUPS needs ATTENTION masked"),
        ({"pilot_class_noise": 1.5}, r"PILOT_CLASS_NOISE is 1\.5"),
        ({"pilot_mask_noise": -1}, "PILOT_MASK_NOISE is -1"),
    ],
)
def test_options_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        build(pilot_groups=1, **change)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["MODEL.MASK_FORMER.SIZE_DIVISIBILITY", "0"], "multiple of 32, not 0"),
        (["MODEL.MASK_FORMER.SIZE_DIVISIBILITY", "48"], "multiple of 32, not 48"),
        (["MODEL.META_ARCHITECTURE", "VideoMaskFormer"], "for MODEL.META_ARCHITECTURE MaskFormer, not Video"),
    ],
)
def test_configs_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        check_pilots(small_config(f"{DECODER}.PILOT_GROUPS", "1", *options))


def small_config(*options):
    return load_config(CONFIG, [*(str(part) for pair in TINY.items() for part in pair), *options])


def test_checkpoints_with_and_without_pilots_load_into_each_other():
    without, told = (build_model(small_config(f"{DECODER}.PILOT_GROUPS", groups)) for groups in ("0", "1"))
    for source, target in ((told, without), (without, told)):
        checkpoint = Checkpoint("some.pth", {k: v + 1 for k, v in source.state_dict().items()})
        assert not load_weights(target, checkpoint).problems
    assert "sem_seg_head.predictor.pilot_embed.weight" in told.state_dict()


def test_without_pilots_there_is_no_further_weight():
    assert "pilot_embed.weight" not in build().state_dict()
    assert build(pilot_groups=3).pilot_embed.weight.shape == (CLASSES, build().query_embed.weight.shape[1])
    assert len(build(pilot_groups=3).query_embed.weight) == QUERIES
