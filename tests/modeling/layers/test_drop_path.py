"""Stochastic depth: whole images, and the mean stays."""

import pytest
import torch

from mask2former.modeling.layers.drop_path import DropPath


def test_training_drops_whole_images_and_keeps_the_mean():
    torch.manual_seed(0)
    dropped = DropPath(0.25).train()(torch.ones(4000, 2, 3))
    per_image = dropped.flatten(1)
    assert torch.equal(per_image.amin(1), per_image.amax(1))
    assert sorted(set(per_image[:, 0].tolist())) == pytest.approx([0, 1 / 0.75])
    assert dropped.mean().item() == pytest.approx(1, abs=0.04)  # four standard deviations


@pytest.mark.parametrize(("rate", "training"), [(0.0, True), (0.9, False)])
def test_drop_path_is_the_identity_in_evaluation_and_at_rate_zero(rate, training):
    x = torch.randn(5, 2)
    assert torch.equal(DropPath(rate).train(training)(x), x)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_rates_outside_the_unit_interval_are_refused(rate):
    with pytest.raises(ValueError, match=str(rate)):
        DropPath(rate)
