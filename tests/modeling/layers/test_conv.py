"""The initial values of convolutions."""

import pytest
import torch
from torch import nn

from mask2former.modeling.layers.conv import init_c2_xavier


@pytest.mark.parametrize("bias", [True, False])
def test_weights_are_uniform_with_variance_one_over_fan_in(bias: bool) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(16, 400, 3, bias=bias)
    init_c2_xavier(convolution)
    fan_in = 16 * 3 * 3
    assert convolution.weight.abs().max().item() == pytest.approx((3 / fan_in) ** 0.5, rel=1e-2)
    assert convolution.weight.var().item() == pytest.approx(1 / fan_in, rel=2e-2)
    assert convolution.bias is None or not convolution.bias.any()
