"""The per-pixel baselines' loss against a loop over pixels."""

import pytest
import torch
from torch.nn import functional as F

from mask2former.modeling.loss.pixel_criterion import PixelCriterion
from mask2former.modeling.predictions import AuxiliaryPrediction, PixelPredictions
from mask2former.structures import Instances

SIZE = (10, 15)  # padded; four does not divide it


def targets_of(*label_maps):
    """Return targets of label maps, in which -1 is no class."""
    made = []
    for labels in label_maps:
        classes = [label for label in labels.unique().tolist() if label >= 0]
        masks = (
            torch.stack([labels == label for label in classes]) if classes else torch.zeros(0, *labels.shape)
        )
        size = tuple(labels.shape)
        made.append(
            Instances(size, gt_classes=torch.tensor(classes, dtype=torch.int64), gt_masks=masks.bool())
        )
    return made


def slow_loss(logits, label_maps, stride=4):
    """Return the mean of minus the logarithm of the class's probability over all pixels with a class."""
    losses = []
    for image, labels in zip(logits, label_maps, strict=True):
        full = F.interpolate(image[None], scale_factor=stride, mode="bilinear", align_corners=False)[
            0
        ].softmax(0)
        for (y, x), label in zip(
            torch.cartesian_prod(*map(torch.arange, labels.shape)), labels.flatten(), strict=True
        ):
            if label >= 0:
                losses.append(-full[label, y, x].log())
    return torch.stack(losses).mean()


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    layers = [torch.randn(2, 3, 3, 4, generator=generator, requires_grad=True) for _ in range(2)]
    maps = [torch.randint(-1, 3, size, generator=generator) for size in (SIZE, (7, 12))]
    return layers, maps


def test_equals_a_loop_over_the_pixels(drawn):
    layers, maps = drawn
    losses = PixelCriterion(weight=2.0)(PixelPredictions(layers), targets_of(*maps), SIZE)
    assert losses.keys() == {"loss_sem_seg_0", "loss_sem_seg"}
    for name, logits in zip(("loss_sem_seg_0", "loss_sem_seg"), layers, strict=True):
        assert losses[name].item() == pytest.approx(2 * slow_loss(logits, maps).item(), rel=1e-5)


def test_gradients_equal_those_of_the_loop(drawn):
    layers, maps = drawn
    PixelCriterion(weight=1.0)(PixelPredictions(layers), targets_of(*maps), SIZE)["loss_sem_seg"].backward()
    (expected,) = torch.autograd.grad(slow_loss(layers[1], maps), layers[1])
    torch.testing.assert_close(layers[1].grad, expected)
    assert layers[0].grad is None or not layers[0].grad.any()


def test_an_auxiliary_prediction_has_its_own_stride_and_weight(drawn):
    layers, maps = drawn
    auxiliary = AuxiliaryPrediction([layers[0][:, :, :2, :2]], 8)
    criterion = PixelCriterion(weight=2.0, auxiliary_weight=0.25)
    losses = criterion(PixelPredictions(layers[1:], auxiliary), targets_of(*maps), SIZE)
    assert losses.keys() == {"loss_sem_seg", "loss_sem_seg_auxiliary"}
    expected = 0.5 * slow_loss(auxiliary.logits[0], maps, stride=8)
    torch.testing.assert_close(losses["loss_sem_seg_auxiliary"], expected)
    (gradient,) = torch.autograd.grad(losses["loss_sem_seg_auxiliary"], layers[0])
    torch.testing.assert_close(gradient, *torch.autograd.grad(expected, layers[0]))


def test_only_the_last_prediction_without_deep_supervision(drawn):
    layers, maps = drawn
    criterion = PixelCriterion(weight=1.0, deep_supervision=False)
    assert criterion(PixelPredictions(layers), targets_of(*maps), SIZE).keys() == {"loss_sem_seg"}


def test_images_without_any_class_have_a_loss_of_zero_with_gradients(drawn):
    layers, maps = drawn
    empty = targets_of(*(torch.full_like(labels, -1) for labels in maps))
    loss = PixelCriterion(weight=1.0)(PixelPredictions(layers), empty, SIZE)["loss_sem_seg"]
    loss.backward()
    assert loss == 0 and layers[1].grad is not None
