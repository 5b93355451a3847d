"""The feed-forward network keeps less than its two layers would, and computes the same."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from mask2former.modeling.layers import chunking
from mask2former.modeling.layers.feed_forward import feed_forward


@pytest.fixture
def layers():
    torch.manual_seed(0)
    return nn.Linear(5, 12).double(), nn.Linear(12, 5).double()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(chunking, "CHUNK_BYTES", 36)  # three rows of 12, so that the last chunk is incomplete


def step(function, x, layers):
    """Return output and all gradients, and the number of values kept for backward besides parameters."""
    layers = copy.deepcopy(layers)
    x = x.detach().requires_grad_()
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    kept = []

    def keep(tensor):
        if not any(tensor.untyped_storage().data_ptr() == p.data_ptr() for p in parameters):
            kept.append(tensor.numel())
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        y = function(x, *layers)
    (y * torch.arange(1.0, 1 + y.numel()).view_as(y)).sum().backward()
    return [y.detach(), x.grad, *(parameter.grad for parameter in parameters)], sum(kept)


def plain(x, linear1, linear2):
    return linear2(F.relu(linear1(x)))


@pytest.mark.parametrize("shape", [(2, 4, 5), (7, 5), (1, 5), (0, 5)])
def test_same_values_and_gradients(layers, shape):
    x = torch.randn(*shape, dtype=torch.float64)
    expected, _ = step(plain, x, layers)
    actual, kept = step(feed_forward, x, layers)
    torch.testing.assert_close(actual, expected)
    assert kept == x.numel()


def test_rows_may_have_any_memory_layout(layers):
    x = torch.randn(5, 4, 3, dtype=torch.float64).transpose(0, 2)
    torch.testing.assert_close(step(feed_forward, x, layers)[0], step(plain, x, layers)[0])


def test_without_gradients_and_under_autocast(layers):
    linears = [copy.deepcopy(layer).float() for layer in layers]
    x = torch.randn(7, 5)
    expected = plain(x, *linears)
    with torch.no_grad():
        torch.testing.assert_close(feed_forward(x, *linears), expected)
    with torch.autocast("cpu", torch.bfloat16):
        y = feed_forward(x, *linears)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert linears[0].weight.grad is not None


def test_dropout_of_hidden_activations_in_training_alone(layers):
    linears, dropout = [copy.deepcopy(layer).float() for layer in layers], nn.Dropout(0.5)
    nn.init.eye_(linears[1].weight)
    nn.init.zeros_(linears[1].bias)
    x = torch.randn(1000, 5)
    hidden = plain(x, *linears)  # of five of the twelve channels
    dropped = feed_forward(x, *linears, dropout)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 2 * hidden[kept])
    assert (kept.sum() / (hidden != 0).sum()).item() == pytest.approx(0.5, abs=0.05)
    torch.testing.assert_close(feed_forward(x, *linears, dropout.eval()), hidden)


def test_one_graph_when_compiled(layers):
    compiled = torch.compile(lambda x: feed_forward(x, *layers), backend="aot_eager", fullgraph=True)
    x = torch.randn(7, 5, dtype=torch.float64)
    torch.testing.assert_close(compiled(x), plain(x, *layers))
