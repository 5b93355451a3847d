"""A training step of a model that gives each pixel a class, ours and transformers'."""

import torch

from mask2former.structures import Instances

CLASSES, IGNORED_ROWS = 5, 30


def run_both_backward(ours, theirs, size):
    """Compute gradients in both models on three random images of `size`; the losses must be equal."""
    images = torch.randint(256, (3, 3, *size), dtype=torch.uint8)
    labels = torch.randint(CLASSES, (3, *size))
    labels[:, :IGNORED_ROWS] = 255
    classes = torch.arange(CLASSES)
    targets = [
        Instances(size, gt_classes=classes, gt_masks=torch.stack([x == k for k in classes])) for x in labels
    ]
    losses = ours([{"image": i, "instances": t} for i, t in zip(images, targets, strict=True)])
    assert losses.keys() == {"loss_sem_seg", "loss_sem_seg_auxiliary"}
    expected = theirs((images - ours.pixel_mean) / ours.pixel_std, labels=labels).loss
    torch.testing.assert_close(sum(losses.values()).double(), expected, rtol=1e-5, atol=1e-5)
    sum(losses.values()).backward()
    expected.backward()
    assert all(parameter.grad.isfinite().all() for parameter in ours.parameters())
