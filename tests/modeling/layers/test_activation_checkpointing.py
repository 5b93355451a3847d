"""Recomputing a block changes memory, and nothing else."""

import copy

import pytest
import torch
from torch import nn

from mask2former.modeling.layers.activation_checkpointing import checkpoint_activations


def run(block, x, recomputed):
    """Return output, gradients and statistics of a training step, and the number of values it kept."""
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        y = checkpoint_activations(block, x) if recomputed else block(x)
    y.square().sum().backward()
    gradients = {f"{name}.grad": parameter.grad for name, parameter in block.named_parameters()}
    return {"y": y.detach(), "x.grad": x.grad, **gradients, **block.state_dict()}, sum(kept)


@pytest.mark.parametrize("training", [True, False])
def test_checkpointing_gives_the_same_step_with_less_memory(training):
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 3, 1), nn.Tanh()]
    block = nn.Sequential(*layers).train(training)
    again = copy.deepcopy(block)
    x = torch.randn(2, 3, 8, 8)
    expected, kept = run(block, x, recomputed=False)
    actual, kept_again = run(again, x, recomputed=True)
    torch.testing.assert_close(actual, expected)
    assert kept_again < kept / 2
    assert block[1].num_batches_tracked == again[1].num_batches_tracked == int(training)


def test_blocks_without_batch_norm_compile_into_one_graph():
    block = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 3))
    compiled = torch.compile(lambda x: checkpoint_activations(block, x), backend="aot_eager", fullgraph=True)
    x = torch.randn(5, 3)
    results = []
    for function in (block, compiled):
        torch.manual_seed(2)
        block.zero_grad()
        y = function(x)
        y.square().sum().backward()
        results.append([y, *(parameter.grad for parameter in block.parameters())])
    torch.testing.assert_close(*results)


def test_without_gradients_the_result_is_the_same():
    block = nn.Linear(3, 3)
    with torch.no_grad():
        assert torch.equal(checkpoint_activations(block, torch.ones(1, 3)), block(torch.ones(1, 3)))
