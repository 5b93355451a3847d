"""An update stage against K-Net's section 3.3 and its public code, taken literally, in float64."""

import pytest
import torch
from torch.nn import functional as F

from mask2former.modeling.knet.update import KernelUpdateStage, KernelUpdator

B, Q, C, K, H, W = 2, 5, 8, 3, 4, 6


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def literal_update(updator, group, kernel):
    """Update one kernel (C,) by its group's feature (C,)."""
    parameter_in, parameter_out = updator.dynamic_layer(group)[:C], updator.dynamic_layer(group)[C:]
    input_in, input_out = updator.input_layer(kernel)[:C], updator.input_layer(kernel)[C:]
    gate = torch.stack([input_in[c] * parameter_in[c] for c in range(C)])
    input_gate = 1 / (1 + (-updator.input_norm_in(updator.input_gate(gate))).exp())
    update_gate = 1 / (1 + (-updator.norm_in(updator.update_gate(gate))).exp())
    mixed = update_gate * updator.norm_out(parameter_out) + input_gate * updator.input_norm_out(input_out)
    return updator.fc_norm(updator.fc_layer(mixed)).clamp(min=0)


def literal_attention(attention, x):
    """Attend among kernels (Q, C), head by head."""
    q, k, v = (
        x @ w.T + b
        for w, b in zip(attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True)
    )
    width = C // attention.num_heads
    heads = []
    for start in range(0, C, width):
        part = slice(start, start + width)
        weights = (q[:, part] @ k[:, part].T / width**0.5).softmax(1)
        heads.append(weights @ v[:, part])
    return attention.out_proj(torch.cat(heads, 1))


def literal_stage(stage, kernels, masks, features):
    """One image: kernels (Q, C), mask logits (Q, h, w), features (C, h, w)."""
    x = stage.feat_transform(features[None])[0]
    groups = torch.zeros(Q, C, dtype=x.dtype)
    for kernel in range(Q):
        for row in range(H):
            for column in range(W):
                if masks[kernel, row, column].sigmoid() > 0.5:
                    groups[kernel] += x[:, row, column]
    new = [
        literal_update(stage.kernel_update_conv, group, kernel)
        for group, kernel in zip(groups, kernels, strict=True)
    ]
    y = torch.stack(new)
    y = stage.attention_norm(y + literal_attention(stage.attention, y))
    y = stage.ffn_norm(y + stage.linear2(stage.linear1(y).relu()))
    linear, norm, _ = stage.cls_fcs
    classes = stage.fc_cls(norm(linear(y)).relu())
    linear, norm, _ = stage.mask_fcs
    filters = stage.fc_mask(norm(linear(y)).relu())
    return y, classes, F.conv2d(x[None], filters[:, :, None, None])[0]


@pytest.fixture
def stage():
    torch.manual_seed(0)
    stage = KernelUpdateStage(width=C, num_classes=K, num_heads=2, dim_feedforward=12).double()
    for parameter in stage.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return stage


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    return drawn(B, Q, C), drawn(B, Q, H, W), drawn(B, C, H, W)


def run(stage, kernels, masks, features):
    """Return new kernels, class logits and mask logits (B, Q, h, w)."""
    with_one = torch.cat([features, torch.ones_like(features[:, :1])], 1)
    new, prediction = stage(kernels, masks, with_one)
    return new, prediction.class_logits, torch.einsum("bqc,bchw->bqhw", prediction.mask_embed, with_one)


def test_a_stage_equals_the_literal_one(stage, inputs):
    for image, found in enumerate(zip(*run(stage, *inputs), strict=True)):
        for one, expected in zip(found, literal_stage(stage, *(x[image] for x in inputs)), strict=True):
            torch.testing.assert_close(one, expected, rtol=1e-9, atol=1e-9)


def test_gradients_equal_those_of_the_literal_stage(stage, inputs):
    kernels, _, features = inputs
    features.requires_grad_(), kernels.requires_grad_()
    wanted = [features, kernels, *stage.parameters()]
    weights = [torch.rand_like(x) for x in run(stage, *inputs)]
    found = torch.autograd.grad(
        sum((w * x).sum() for w, x in zip(weights, run(stage, *inputs), strict=True)), wanted
    )
    images = [literal_stage(stage, *(x[image] for x in inputs)) for image in range(B)]
    total = sum((w * torch.stack(x)).sum() for w, x in zip(weights, zip(*images, strict=True), strict=True))
    for one, expected in zip(found, torch.autograd.grad(total, wanted), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-7, atol=1e-8)


def test_an_empty_mask_is_a_group_of_zeros(stage, inputs):
    kernels, masks, features = inputs
    masks[0, 2] = -1.0
    new = run(stage, kernels, masks, features)[0]
    torch.testing.assert_close(new[0], literal_stage(stage, kernels[0], masks[0], features[0])[0])
    assert new.isfinite().all()


def test_closed_gates_would_leave_nothing_of_group_and_kernel():
    torch.manual_seed(0)
    updator = KernelUpdator(C).double()
    for norm in (updator.norm_in, updator.input_norm_in):
        torch.nn.init.zeros_(norm.weight)
        torch.nn.init.constant_(norm.bias, -1e3)
    once, again = updator(drawn(1, Q, C), drawn(1, Q, C)), updator(drawn(1, Q, C), drawn(1, Q, C))
    torch.testing.assert_close(once, again)


def test_scores_start_at_one_percent():
    torch.manual_seed(0)
    stage = KernelUpdateStage(width=C, num_classes=K, num_heads=2, dim_feedforward=12)
    torch.nn.init.zeros_(stage.fc_cls.weight)
    _, prediction = stage(torch.randn(1, Q, C), torch.randn(1, Q, H, W), torch.randn(1, C + 1, H, W))
    torch.testing.assert_close(prediction.class_logits.sigmoid(), torch.full((1, Q, K), 0.01))
