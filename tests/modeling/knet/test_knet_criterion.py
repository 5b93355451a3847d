"""K-Net's loss against a slow one: all assignments are tried, cells are visited one by one."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from mask2former.modeling.knet.criterion import KNetCriterion
from mask2former.modeling.knet.predictions import KNetPredictions
from mask2former.modeling.knet.targets import reduce_smoothly
from mask2former.modeling.loss.matcher import LossWeights
from mask2former.modeling.predictions import Prediction
from mask2former.structures import Instances

CLASSES, THINGS, STUFF, KERNELS, WIDTH = 4, [0, 2], [1, 3], 3, 5
PADDED, GRID = (16, 24), (4, 6)  # and features at stride 8
CLASS, MASK, DICE, RANK, SEG = 2.0, 1.0, 4.0, 0.1, 1.5


def criterion():
    weights = LossWeights(CLASS, MASK, DICE)
    return KNetCriterion(thing_ids=THINGS, weights=weights, rank_weight=RANK, seg_weight=SEG)


def allowed():
    rows = [[label in THINGS for label in range(CLASSES)]] * KERNELS
    return torch.tensor(rows + [[label == own for label in range(CLASSES)] for own in STUFF])


def draw(images=2, stages=3, seed=0):
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=random).requires_grad_()

    kernels = KERNELS + len(STUFF)
    layers = [
        Prediction(normal(images, kernels, CLASSES), normal(images, kernels, WIDTH)) for _ in range(stages)
    ]
    features = normal(images, WIDTH, 2, 3)
    return KNetPredictions(
        layers, features, normal(images, KERNELS, 2, 3), normal(images, CLASSES, 2, 3), allowed()
    )


def target(boxes, size=PADDED):
    """Return targets (class, top, left, bottom, right)."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (_, top, left, bottom, right) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    return Instances(
        size, gt_classes=torch.tensor([box[0] for box in boxes], dtype=torch.int64), gt_masks=masks
    )


TARGETS = [
    # the two parts of class 3 are one target; the things touch, so a cell has parts of both
    target([(3, 0, 0, 5, 20), (0, 6, 2, 15, 11), (2, 6, 11, 14, 23), (3, 15, 0, 16, 24)]),
    target([(2, 0, 0, 9, 9), (1, 9, 0, 14, 20)], size=(14, 20)),
]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def focal(logit, right):
    p = sigmoid(logit)
    return -0.25 * (1 - p) ** 2 * math.log(p) if right else -0.75 * p**2 * math.log(1 - p)


def dice(p, t):
    inside = sum(a * b for a, b in zip(p, t, strict=True))
    return 2 * inside / (sum(a * a for a in p) + 1e-3 + sum(b * b for b in t) + 1e-3)


def cells(mask):
    return [float(x) for x in mask.flatten()]


def slow_targets(instances):
    """Return [(mask, class)] for things and for stuff: parts of a class joined, on the grid."""
    full = torch.zeros(len(instances), *PADDED, dtype=torch.float64)
    height, width = instances.gt_masks.shape[1:]
    full[:, :height, :width] = instances.gt_masks.double()
    labels = instances.gt_classes.tolist()
    joined = [(full[i], label) for i, label in enumerate(labels) if label in THINGS]
    for own in STUFF:
        if own in labels:
            parts = [full[i] for i, label in enumerate(labels) if label == own]
            joined.append((torch.stack(parts).amax(0), own))
    reduced = []
    for mask, label in joined:  # a cell is the mean of the four pixels at its center
        small = torch.zeros(GRID, dtype=torch.float64)
        for row, column in itertools.product(*map(range, GRID)):
            small[row, column] = mask[4 * row + 1 : 4 * row + 3, 4 * column + 1 : 4 * column + 3].mean()
        reduced.append((small, label))
    return [x for x in reduced if x[1] in THINGS], [x for x in reduced if x[1] in STUFF]


def slow_match(masks, classes, things):
    """Return the kernel of each thing: the assignment of least cost among all."""

    def cost(kernel, mask, label):
        p, t = [sigmoid(x) for x in cells(masks[kernel])], cells(mask)
        agreement = sum(a * b + (1 - a) * (1 - b) for a, b in zip(p, t, strict=True)) / len(p)
        score = 0.0
        if classes is not None:
            score = focal(classes[kernel][label], True) - focal(classes[kernel][label], False)
        return CLASS * score - MASK * agreement - DICE * dice(p, t)

    return min(
        itertools.permutations(range(KERNELS), len(things)),
        key=lambda kernels: sum(cost(k, *thing) for k, thing in zip(kernels, things, strict=True)),
    )


def slow_mask_terms(masks, matched):
    """Return the sums of one image: mask and dice loss over targets, rank loss over cells."""
    mask_loss = dice_loss = rank = 0.0
    for kernel, (mask, _) in matched:
        p, t = [sigmoid(x) for x in cells(masks[kernel])], cells(mask)
        loss = [-b * math.log(a) - (1 - b) * math.log(1 - a) for a, b in zip(p, t, strict=True)]
        mask_loss += sum(loss) / len(loss)
        dice_loss += 1 - dice(p, t)
    for row, column in itertools.product(*map(range, GRID)):
        owners = [kernel for kernel, (mask, _) in matched if mask[row, column] > 0]
        if owners:
            values = [math.exp(x) for x in masks[:, row, column].tolist()]
            rank -= math.log(values[max(owners)] / sum(values))
    return mask_loss, dice_loss, rank


def slow_seg(logits, targets):
    """Return the sum of the focal loss over cells and classes, and the number of cells with a class."""
    total, labeled = 0.0, 0
    for row, column in itertools.product(*map(range, GRID)):
        labels = [label for mask, label in targets if mask[row, column] > 0]
        labeled += bool(labels)
        for label in range(CLASSES):
            total += focal(float(logits[label, row, column]), labels[-1:] == [label])
    return total, labeled


@torch.no_grad()
def slow_losses(predictions, targets):
    enlarged = [
        F.interpolate(
            torch.einsum("bqc,bchw->bqhw", layer.mask_embed, predictions.mask_features).double(),
            scale_factor=2,
            mode="bilinear",
        )
        for layer in predictions.layers
    ]
    first = F.interpolate(predictions.first_masks.double(), scale_factor=2, mode="bilinear")
    seg = F.interpolate(predictions.seg_logits.double(), scale_factor=2, mode="bilinear")
    sums: dict[str, float] = {}
    counts = {"things": 0, "targets": 0, "labeled": 0, "cells": 0}

    def add(name, value):
        sums[name] = sums.get(name, 0.0) + value

    def add_terms(prefix, suffix, terms):
        for name, value in zip(("mask", "dice", "rank"), terms, strict=True):
            add(f"loss_{prefix}{name}{suffix}", value)

    for image, instances in enumerate(targets):
        things, stuff = slow_targets(instances)
        counts["things"] += len(things)
        counts["targets"] += len(things) + len(stuff)
        own = [(KERNELS + STUFF.index(label), (mask, label)) for mask, label in stuff]
        kernels = slow_match(first[image], None, things)
        by_kernel = [
            thing for _, thing in sorted(zip(kernels, things, strict=True), key=lambda pair: pair[0])
        ]
        add_terms("first_", "", slow_mask_terms(first[image], list(zip(kernels, things, strict=True))))
        for stage, layer in enumerate(predictions.layers):
            suffix = f"_{stage}" if stage < len(predictions.layers) - 1 else ""
            if stage:
                before = predictions.layers[stage - 1].class_logits[image].tolist()
                kernels = slow_match(enlarged[stage - 1][image], before, things)
            matched = [*zip(kernels, things, strict=True), *own]
            add_terms("", suffix, slow_mask_terms(enlarged[stage][image], matched))
            right = {(kernel, label) for kernel, (_, label) in matched}
            for kernel, label in predictions.allowed.nonzero().tolist():
                value = float(layer.class_logits[image, kernel, label])
                add(f"loss_ce{suffix}", focal(value, (kernel, label) in right))
        value, labeled = slow_seg(seg[image], [*stuff, *by_kernel])
        add("loss_seg", value)
        counts["labeled"] += labeled
        counts["cells"] += GRID[0] * GRID[1]
    factors = {"ce": CLASS, "mask": MASK, "dice": DICE, "rank": RANK, "seg": SEG}
    for name in sums:
        term = name.removeprefix("loss_").removeprefix("first_").split("_")[0]
        count = {"rank": "cells", "seg": "labeled"}.get(term, "things" if "first" in name else "targets")
        sums[name] *= factors[term] / counts[count]
    return sums


@pytest.mark.parametrize("seed", range(3))
def test_losses_equal_the_slow_ones(seed):
    predictions = draw(seed=seed)
    found = criterion()(predictions, TARGETS, PADDED)
    expected = slow_losses(predictions, TARGETS)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=1e-4)


def test_every_prediction_gets_a_gradient():
    predictions = draw()
    sum(criterion()(predictions, TARGETS, PADDED).values()).backward()
    inputs = [predictions.mask_features, predictions.first_masks, predictions.seg_logits]
    for x in [*inputs, *(x for layer in predictions.layers for x in layer[:2])]:
        assert x.grad.isfinite().all() and x.grad.abs().sum() > 0


def test_the_class_loss_of_what_a_kernel_may_not_be_is_zero():
    predictions = draw()
    losses = criterion()(predictions, TARGETS, PADDED)
    (gradient,) = torch.autograd.grad(losses["loss_ce"], predictions.layers[-1].class_logits)
    assert torch.equal(gradient != 0, predictions.allowed.expand(2, -1, -1))


def test_a_stuff_class_belongs_to_its_kernel_whatever_the_masks():
    """The kernel of class 3 predicts nothing where the target is; the other stuff kernel is perfect."""
    predictions = draw(images=1, stages=1)
    logits = predictions.layers[0].class_logits
    losses = criterion()(predictions, [target([(3, 0, 0, 16, 12)])], PADDED)
    (gradient,) = torch.autograd.grad(losses["loss_ce"], logits)
    assert (gradient[0] < 0).nonzero().tolist() == [[KERNELS + 1, 3]]
    (gradient,) = torch.autograd.grad(
        criterion()(predictions, [target([(3, 0, 0, 16, 12)])], PADDED)["loss_dice"],
        predictions.layers[0].mask_embed,
    )
    assert gradient[0].any(1).nonzero().tolist() == [[KERNELS + 1]]


def test_more_things_than_kernels_leave_some_out():
    boxes = [(0, 0, 4 * i, 8, 4 * i + 4) for i in range(5)]
    losses = criterion()(draw(images=1), [target(boxes)], PADDED)
    assert all(value.isfinite() for value in losses.values())


def test_images_without_targets_have_mask_losses_of_zero_with_gradients():
    predictions = draw()
    losses = criterion()(predictions, [target([]), target([])], PADDED)
    assert losses.keys() == criterion()(predictions, TARGETS, PADDED).keys()
    assert all(losses[name] == 0 for name in losses if name.split("_")[1] not in ("ce", "seg"))
    sum(losses.values()).backward()
    assert predictions.first_masks.grad is not None and predictions.layers[0].mask_embed.grad is not None


def test_the_mean_over_processes_is_the_loss_of_one_process_with_all_images(monkeypatch):
    whole = criterion()(draw(), TARGETS, PADDED)
    layers = draw()
    parts = [
        KNetPredictions(
            [Prediction(*(x[i : i + 1] for x in layer[:2])) for layer in layers.layers],
            *(x[i : i + 1] for x in (layers.mask_features, layers.first_masks, layers.seg_logits)),
            layers.allowed,
        )
        for i in range(2)
    ]
    module = "mask2former.modeling.knet.criterion"
    counts = []

    def record(totals):
        counts.append(totals)
        return totals

    monkeypatch.setattr(f"{module}.all_reduce_sum", record)
    for part, image in zip(parts, TARGETS, strict=True):
        criterion()(part, [image], PADDED)
    monkeypatch.setattr(f"{module}.all_reduce_sum", lambda _: sum(counts))
    monkeypatch.setattr(f"{module}.world_size", lambda: 2)
    each = [criterion()(part, [image], PADDED) for part, image in zip(parts, TARGETS, strict=True)]
    for name, value in whole.items():
        torch.testing.assert_close((each[0][name] + each[1][name]) / 2, value)


def test_masks_are_reduced_in_chunks_as_at_once(monkeypatch):
    masks = torch.rand(5, 14, 20, generator=torch.Generator().manual_seed(0)) > 0.5
    whole = reduce_smoothly(masks, PADDED, GRID)
    monkeypatch.setattr("mask2former.modeling.knet.targets.PIXELS_AT_ONCE", 2 * PADDED[0] * PADDED[1])
    assert torch.equal(reduce_smoothly(masks, PADDED, GRID), whole)
