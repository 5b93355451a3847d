import itertools
import math

import pytest
import torch
from torch import nn

from mask2former.modeling.loss import criterion as criterion_module
from mask2former.modeling.loss.criterion import WHERE, SetCriterion
from mask2former.modeling.loss.matcher import LossWeights
from mask2former.modeling.loss.points import random_points, uncertain_points
from mask2former.modeling.predictions import Prediction, Predictions
from mask2former.structures import Instances

SIZE = (32, 48)
CLASSES = 3
KEYS = {f"loss_{term}{layer}" for term in ("ce", "mask", "dice") for layer in ("", "_0", "_1")}


def criterion(**changes):
    weights = {"class_weight": 2.0, "mask_weight": 5.0, "dice_weight": 5.0, "no_object_weight": 0.1}
    points = {"num_points": 50, "oversample_ratio": 3.0, "importance_sample_ratio": 0.75}
    return SetCriterion(**{"num_classes": CLASSES, **weights, **points, **changes})


def drawn_tensors(num_images, num_queries=5, num_layers=3, num_classes=CLASSES, seed=0):
    """Return class logits (L, B, Q, K+1), embeddings (L, B, Q, C) and features (B, C, h, w)."""
    random = torch.Generator().manual_seed(seed)
    shapes = [
        (num_layers, num_images, num_queries, num_classes + 1),
        (num_layers, num_images, num_queries, 6),
        (num_images, 6, SIZE[0] // 4, SIZE[1] // 4),
    ]
    return [torch.randn(shape, generator=random).requires_grad_() for shape in shapes]


def as_predictions(class_logits, mask_embed, features):
    return Predictions([Prediction(c, e) for c, e in zip(class_logits, mask_embed, strict=True)], features)


def drawn_targets(count, size=SIZE, num_classes=CLASSES, seed=0):
    random = torch.Generator().manual_seed(seed)
    return Instances(
        size,
        gt_classes=torch.randint(num_classes, (count,), generator=random),
        gt_masks=torch.rand(count, *size, generator=random) > 0.5,
    )


def slow_mask_loss(logits, targets, mask_loss="cross_entropy"):
    """Return cross-entropy or focal loss, and dice, of one pair, (P,) each."""
    p = logits.sigmoid()
    loss = -(targets * p.log() + (1 - targets) * (1 - p).log())
    if mask_loss == "focal":  # targets are 0 or 1
        loss *= torch.where(targets == 1, 0.25 * (1 - p) ** 2, 0.75 * p**2)
    return loss.mean(), 1 - (2 * (p * targets).sum() + 1) / (p.sum() + targets.sum() + 1)


def two_halves(num_images=1):
    """Return embeddings, features and targets of class 0 on the left, 2 on the right: queries 1 and 3."""
    features = torch.zeros(num_images, 2, 8, 12)
    features[:, 0, :, :6] = 1
    features[:, 1, :, 6:] = 1
    embed = torch.tensor([[-9.0, -9.0], [9.0, -9.0], [9.0, 9.0], [-9.0, 9.0]])
    masks = torch.zeros(2, *SIZE, dtype=torch.bool)
    masks[0, :, :24] = True
    masks[1, :, 24:] = True
    targets = Instances(SIZE, gt_classes=torch.tensor([0, 2]), gt_masks=masks)
    return embed.expand(num_images, -1, -1), features, [targets] * num_images


def test_losses_of_a_small_example_equal_hand_computed_values():
    embed, features, targets = two_halves()
    class_logits = torch.zeros(1, 4, CLASSES + 1)
    class_logits[0, 1, 0] = math.log(4)  # query 1: its class has probability 4/7
    losses = criterion()(Predictions([Prediction(class_logits, embed)], features), targets, SIZE)
    # Queries 1 and 3 matched at weight 1 and -log of 4/7 and 1/4; queries 0 and 2 at weight 0.1 and -log 1/4.
    expected = (math.log(7 / 4) + math.log(4) + 0.2 * math.log(4)) / 2.2
    assert float(losses["loss_ce"]) == pytest.approx(2 * expected, rel=1e-5)
    # The masks are right, except within a cell of the middle and the border; a wrong mask costs 9 a point.
    assert 0 < losses["loss_mask"] / 5 < 2
    assert 0 < losses["loss_dice"] / 5 < 0.2


def read_padded(maps, points):
    """Sample maps (T, h, w) at each one's points (T, P, 2), in [0, 1] of the padded image."""
    grid = 2 * points[:, None] - 1
    return nn.functional.grid_sample(maps[:, None].float(), grid, align_corners=False)[:, 0, 0]


def best_queries(cost):
    """Return the cheapest assignment of a query to each target, found by trying all."""
    queries, targets = cost.shape
    choices = itertools.permutations(range(queries), targets)
    return min(choices, key=lambda choice: sum(float(cost[q, n]) for n, q in enumerate(choice)))


def slow_losses(class_logits, embed, features, targets, seeds, match_on, loss_on, mask_loss):
    """Compute pair by pair, on dense logits and padded masks."""
    num_layers, _, num_queries, _ = class_logits.shape
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    if match_on == "points":
        points = [random_points(num_layers, 50, generator=generator) for generator in generators]
    dense = torch.einsum("lbqc,bchw->lbqhw", embed, features)
    ce, weight = torch.zeros(num_layers), torch.zeros(num_layers)
    mask, dice = torch.zeros(num_layers), torch.zeros(num_layers)
    for image, target in enumerate(targets):
        height, width = target.gt_masks.shape[1:]
        masks = nn.functional.pad(target.gt_masks, (0, SIZE[1] - width, 0, SIZE[0] - height)).float()
        matched = []
        for layer in range(num_layers):
            logits, values = dense[layer, image].flatten(1), masks[:, ::4, ::4].flatten(1)
            if match_on == "points":
                at = points[image][layer].expand(num_queries, -1, -1)
                logits, values = read_padded(dense[layer, image], at), read_padded(masks, at[: len(target)])
            probabilities = class_logits[layer, image].softmax(-1)
            cost = torch.zeros(num_queries, len(target))
            for q, n in itertools.product(range(num_queries), range(len(target))):
                cost[q, n] = 5 * sum(slow_mask_loss(logits[q], values[n], mask_loss))
                cost[q, n] -= 2 * probabilities[q, target.gt_classes[n]]
            chosen = best_queries(cost)
            wanted = dict(zip(chosen, target.gt_classes.tolist(), strict=True))
            for q in range(num_queries):
                w = 1.0 if q in wanted else 0.1
                ce[layer] -= w * probabilities[q, wanted.get(q, CLASSES)].log()
                weight[layer] += w
            matched.append(dense[layer, image][list(chosen)])
        logits, values = torch.cat(matched), masks.repeat(num_layers, 1, 1)
        if loss_on == "points":
            own = uncertain_points(
                logits, 50, oversample_ratio=3.0, importance_sample_ratio=0.75, generator=generators[image]
            )
            logits, values = read_padded(logits, own), read_padded(values, own)
        else:
            logits = nn.functional.interpolate(logits[:, None], SIZE, mode="bilinear").flatten(1)
            values = values.flatten(1)
        for i, (x, t) in enumerate(zip(logits, values, strict=True)):
            layer = i // len(target)
            terms = slow_mask_loss(x, t, mask_loss)
            mask[layer] += terms[0]
            dice[layer] += terms[1]
    total = sum(len(target) for target in targets)
    return {"loss_ce": 2 * ce / weight, "loss_mask": 5 * mask / total, "loss_dice": 5 * dice / total}


WAYS = [
    ("points", "points", "cross_entropy"),
    ("points", "masks", "cross_entropy"),
    ("masks", "points", "cross_entropy"),
    ("masks", "masks", "cross_entropy"),
    ("masks", "masks", "focal"),
]


@pytest.mark.parametrize("match_on, loss_on, mask_loss", WAYS)
@pytest.mark.parametrize("empty", [0, 1], ids="{} empty masks".format)
def test_losses_equal_the_reference_implementation(match_on, loss_on, mask_loss, empty):
    tensors = [tensor.detach() for tensor in drawn_tensors(3)]
    targets = [drawn_targets(n, size, seed=n) for n, size in ((2, SIZE), (0, SIZE), (3, (29, 41)))]
    targets[2].gt_masks[:empty] = False  # as those of segments outside of a crop
    ways = {"match_on": match_on, "loss_on": loss_on, "mask_loss": mask_loss}
    losses = criterion(**ways)(as_predictions(*tensors), targets, SIZE, [4, 5, 6])
    for name, values in slow_losses(*tensors, targets, [4, 5, 6], **ways).items():
        for suffix, value in zip(("_0", "_1", ""), values.tolist(), strict=True):
            assert losses[name + suffix].item() == pytest.approx(value, rel=1e-4)


def test_whole_masks_in_chunks_give_the_same_losses_and_gradients(monkeypatch):
    results = []
    for pixels in (2**23, SIZE[0] * SIZE[1]):
        monkeypatch.setattr("mask2former.modeling.loss.dense.PIXELS_AT_ONCE", pixels)
        tensors, targets = drawn_tensors(2), [drawn_targets(3), drawn_targets(2)]
        losses = criterion(loss_on="masks")(as_predictions(*tensors), targets, SIZE, [1, 2])
        sum(losses.values()).backward()
        results.append([*losses.values(), *(tensor.grad for tensor in tensors)])
    for whole, in_chunks in zip(*results, strict=True):
        assert torch.allclose(whole, in_chunks, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("key", ["match_on", "loss_on", "mask_loss"])
def test_an_unknown_way_to_match_or_lose_lists_the_known_ones(key):
    with pytest.raises(ValueError, match=f"{key.upper()} is 'pixels'; it must be one of "):
        criterion(**{key: "pixels"})


def test_masks_are_zero_in_the_padding():
    _, features, _ = two_halves()
    embed = torch.tensor([[[9.0, -9.0]]])
    class_logits = torch.zeros(1, 1, CLASSES + 1)
    ones = torch.ones(1, 32, 24, dtype=torch.bool)
    narrow = Instances((32, 24), gt_classes=torch.tensor([1]), gt_masks=ones)
    padded = Instances(SIZE, gt_classes=narrow.gt_classes, gt_masks=nn.functional.pad(ones, (0, 24)))
    predictions = Predictions([Prediction(class_logits, embed)], features)
    unpadded_losses = criterion()(predictions, [narrow], SIZE, [3])
    padded_losses = criterion()(predictions, [padded], SIZE, [3])
    for key, value in unpadded_losses.items():
        assert value.item() == pytest.approx(float(padded_losses[key]), abs=1e-4)
    assert float(unpadded_losses["loss_dice"]) < 0.5  # the narrow mask is right where it is


COUNTS = {
    "normal": [3, 2],
    "half empty": [0, 2],
    "all empty": [0, 0],
    "more objects than queries": [9, 1],
    "one empty image": [0],
}


@pytest.mark.parametrize("num_classes", [1, CLASSES])
@pytest.mark.parametrize("num_queries", [1, 5])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS.keys())
@pytest.mark.parametrize("where", WHERE)
def test_every_batch_gives_all_terms_and_gradients(where, counts, num_queries, num_classes):
    tensors = drawn_tensors(len(counts), num_queries, num_classes=num_classes)
    targets = [drawn_targets(n, num_classes=num_classes) for n in counts]
    loss = criterion(num_classes=num_classes, match_on=where, loss_on=where)
    losses = loss(as_predictions(*tensors), targets, SIZE)
    assert set(losses) == KEYS
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    for tensor in tensors:
        assert tensor.grad is not None and torch.isfinite(tensor.grad).all()
    assert losses["loss_ce"] > 0 and tensors[0].grad.abs().sum() > 0
    if not sum(counts):
        assert all(losses[key].item() == 0 for key in KEYS if "ce" not in key)
        assert not tensors[1].grad.any() and not tensors[2].grad.any()


def test_mask_losses_are_divided_by_all_targets_including_unmatched_ones():
    class_logits, embed, features = drawn_tensors(1, num_queries=1)
    twice = drawn_targets(1)
    twice = Instances(SIZE, gt_classes=twice.gt_classes.repeat(2), gt_masks=twice.gt_masks.repeat(2, 1, 1))
    exact = criterion(importance_sample_ratio=0.0, num_points=3000)
    one = exact(as_predictions(class_logits, embed, features), [drawn_targets(1)], SIZE, [0])
    two = exact(as_predictions(class_logits, embed, features), [twice], SIZE, [0])
    for key in ("loss_mask", "loss_dice", "loss_mask_1"):
        assert two[key].item() == pytest.approx(one[key].item() / 2, rel=0.1)


def test_only_the_last_prediction_without_deep_supervision():
    tensors, targets = drawn_tensors(2), [drawn_targets(2), drawn_targets(1)]
    losses = criterion(deep_supervision=False)(as_predictions(*tensors), targets, SIZE)
    assert set(losses) == {"loss_ce", "loss_mask", "loss_dice"}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_query_is_matched_last(bad):
    embed, features, targets = two_halves()
    embed = embed.clone()
    embed[0, 0] = bad
    losses = criterion()(Predictions([Prediction(torch.zeros(1, 4, 4), embed)], features), targets, SIZE)
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_seeds_determine_the_points_in_any_order():
    tensors, targets = drawn_tensors(3), [drawn_targets(n, seed=n) for n in (2, 1, 3)]
    order = [2, 0, 1]
    shuffled = [tensors[0][:, order], tensors[1][:, order], tensors[2][order]]
    losses = criterion()(as_predictions(*tensors), targets, SIZE, [7, 8, 9])
    again = criterion()(as_predictions(*shuffled), [targets[i] for i in order], SIZE, [9, 7, 8])
    others = criterion()(as_predictions(*tensors), targets, SIZE, [7, 8, 10])
    for key, value in losses.items():
        assert again[key].item() == pytest.approx(value.item(), rel=1e-5)
    assert others["loss_mask"].item() != losses["loss_mask"].item()


def test_without_seeds_points_come_from_torchs_generator():
    tensors, targets = drawn_tensors(1), [drawn_targets(2)]
    values = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(criterion()(as_predictions(*tensors), targets, SIZE)["loss_mask"].item())
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_float32_under_autocast(dtype):
    tensors, targets = drawn_tensors(2), [drawn_targets(2), drawn_targets(1)]
    halves = [tensor.detach().to(dtype) for tensor in tensors]
    with torch.autocast("cpu", dtype):
        losses = criterion()(as_predictions(*halves), targets, SIZE, [1, 2])
    plain = criterion()(as_predictions(*(half.float() for half in halves)), targets, SIZE, [1, 2])
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert {k: float(v) for k, v in losses.items()} == {k: float(v) for k, v in plain.items()}


def test_huge_half_precision_logits_do_not_overflow():
    # Six products of 40,000; half precision ends at 65,504.
    embed = torch.full((1, 2, 6), 200.0, dtype=torch.float16)
    features = torch.full((1, 6, 8, 12), 200.0, dtype=torch.float16)
    predictions = Predictions([Prediction(torch.zeros(1, 2, 4), embed)], features)
    assert all(torch.isfinite(loss) for loss in criterion()(predictions, [drawn_targets(2)], SIZE).values())


@pytest.mark.parametrize(
    "change", [{"num_points": 0}, {"oversample_ratio": 0.5}, {"importance_sample_ratio": 1.5}]
)
def test_impossible_sampling_is_refused(change):
    with pytest.raises(ValueError, match="TRAIN_NUM_POINTS"):
        criterion(**change)


@pytest.mark.parametrize("ratio", [-0.1, 1.1])
def test_an_impossible_share_of_points_around_objects_is_refused(ratio):
    with pytest.raises(ValueError, match=rf"OBJECT_POINT_RATIO is {ratio}"):
        criterion(object_point_ratio=ratio)


def test_small_objects_get_as_many_points_as_large_ones_if_asked(monkeypatch):
    """Half of the points that match, and of those of the loss, lie around the objects, in equal parts."""
    seen = {}

    def keep(name):
        real = getattr(criterion_module, name)

        def sample(masks, points, size):
            seen[name] = points
            return real(masks, points, size)

        monkeypatch.setattr(criterion_module, name, sample)

    keep("sample_masks")
    keep("sample_masks_at_shared_points")
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[0, 2:4, 2:4], masks[1, 8:, 8:] = True, True
    target = Instances((32, 32), gt_classes=torch.tensor([0, 1]), gt_masks=masks)
    loss = criterion(num_points=200, object_point_ratio=0.5, importance_sample_ratio=0.0)
    predictions = Predictions(
        [Prediction(torch.zeros(1, 3, CLASSES + 1), torch.zeros(1, 3, 4))], torch.zeros(1, 4, 8, 8)
    )
    loss(predictions, [target], (32, 32), [5])
    small = torch.tensor([1 / 32, 5 / 32])  # the surroundings of the first object, in x and y

    def share(points):
        return ((points >= small[0]) & (points <= small[1])).all(-1).float().mean(-1)

    assert 0.25 <= share(seen["sample_masks_at_shared_points"]).item() <= 0.3
    of_targets = share(seen["sample_masks"]).flatten()
    assert of_targets[0] >= 0.5 and of_targets[1] < 0.1


def test_no_object_weight_is_part_of_the_state_and_may_be_zero():
    assert criterion().state_dict()["empty_weight"].tolist() == pytest.approx([1, 1, 1, 0.1])
    predictions = as_predictions(*drawn_tensors(1))
    losses = criterion(no_object_weight=0.0)(predictions, [drawn_targets(0)], SIZE)
    assert all(loss.item() == 0 for loss in losses.values())


def test_weights_scale_their_terms():
    tensors, targets = drawn_tensors(1), [drawn_targets(2)]
    twice = criterion(class_weight=4.0, mask_weight=10.0, dice_weight=10.0)
    assert twice.weights == LossWeights(4.0, 10.0, 10.0)
    for key, value in criterion()(as_predictions(*tensors), targets, SIZE, [0]).items():
        other = twice(as_predictions(*tensors), targets, SIZE, [0])[key]
        assert other.item() == pytest.approx(2 * value.item(), rel=1e-5)
