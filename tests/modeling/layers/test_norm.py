"""Norms against torch's own, alone and over processes."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from mask2former.modeling.layers.norm import NORMS, FrozenBatchNorm2d, SyncBatchNorm, freeze, get_norm

IMAGES = 3  # two for the first process, one for the second


def random_batch_norm(channels=4):
    norm = nn.BatchNorm2d(channels)
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        nn.init.uniform_(tensor, 0.2, 2)
    return norm


@pytest.mark.parametrize("with_gradient", [False, True])
def test_frozen_equals_batch_norm_in_evaluation(with_gradient):
    torch.manual_seed(0)
    norm = random_batch_norm()
    frozen = FrozenBatchNorm2d.of(norm).train()
    x = torch.randn(2, 4, 5, 6, requires_grad=with_gradient)
    torch.testing.assert_close(frozen(x), norm.eval()(x))
    if with_gradient:
        expected, actual = (torch.autograd.grad(n(x).square().sum(), x)[0] for n in (norm, frozen))
        torch.testing.assert_close(actual, expected)


def test_frozen_is_the_identity_until_weights_are_loaded():
    x = torch.randn(2, 4, 5, 6)
    torch.testing.assert_close(FrozenBatchNorm2d(4)(x), x)


def test_frozen_has_only_buffers_which_training_does_not_change():
    frozen = FrozenBatchNorm2d.of(random_batch_norm()).train()
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    frozen(torch.randn(2, 4, 5, 6, requires_grad=True)).sum().backward()
    assert not list(frozen.parameters())
    assert set(before) == {"weight", "bias", "running_mean", "running_var"}
    for name, value in frozen.state_dict().items():
        assert torch.equal(value, before[name])


def test_frozen_keeps_no_activation_for_backward():
    kept = []
    x = torch.randn(2, 4, 16, 16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        FrozenBatchNorm2d(4)(x)
    assert kept == [4]


@pytest.mark.parametrize("with_gradient", [False, True])
def test_frozen_keeps_half_precision(with_gradient):
    x = torch.randn(1, 4, 3, 3, dtype=torch.bfloat16, requires_grad=with_gradient)
    assert FrozenBatchNorm2d(4)(x).dtype == torch.bfloat16


def test_freeze_turns_nested_batch_norms_into_constants():
    block = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(random_batch_norm(), SyncBatchNorm(4)))
    x = torch.randn(2, 3, 4, 4)
    expected = block.eval()(x)
    freeze(block.train())
    torch.testing.assert_close(block(x), expected)
    assert not any(parameter.requires_grad for parameter in block.parameters())
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in block.modules())


def test_names():
    assert {name: type(get_norm(name, 32)).__name__ for name in NORMS} == {
        "": "NoneType",
        "BN": "BatchNorm2d",
        "FrozenBN": "FrozenBatchNorm2d",
        "SyncBN": "SyncBatchNorm",
        "GN": "GroupNorm",
    }
    assert set(SyncBatchNorm(4).state_dict()) == set(nn.BatchNorm2d(4).state_dict())


@pytest.mark.parametrize(("name", "channels", "message"), [("XN", 32, "'XN'.*'BN'"), ("GN", 48, "32 .* 48")])
def test_errors(name, channels, message):
    with pytest.raises(ValueError, match=message):
        get_norm(name, channels)


def run_step(norm, x):
    """Return outputs, gradients and statistics of a step; its loss weights each value differently."""
    x = x.clone().requires_grad_()
    y = norm.train()(x)
    weight = torch.linspace(-1, 2, x[0].numel()).view_as(x[0])
    (y.square() * weight).sum().backward()
    gradients = {f"{name}.grad": parameter.grad for name, parameter in norm.named_parameters()}
    return {"y": y.detach(), "x.grad": x.grad, **gradients, **norm.state_dict()}


def make_step():
    torch.manual_seed(0)
    return random_batch_norm(), torch.randn(IMAGES, 4, 5, 6) * 3 + 1


def sync_like(norm):
    sync = SyncBatchNorm(4)
    sync.load_state_dict(norm.state_dict())
    return sync


def test_sync_is_batch_norm_with_one_process():
    norm, x = make_step()
    torch.testing.assert_close(run_step(sync_like(norm), x), run_step(norm, x))


def test_sync_uses_torchs_implementation_on_other_devices():
    """On the device without memory, as on GPUs."""
    assert SyncBatchNorm(4).to("meta")(torch.empty(2, 4, 5, 6, device="meta")).shape == (2, 4, 5, 6)


def test_sync_in_a_group_of_one_cpu_process(tmp_path):
    norm, x = make_step()
    sync = sync_like(norm)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(nn.Sequential(sync))  # refuses torch's own on a CPU
        torch.testing.assert_close(run_step(sync, x), run_step(norm, x))
        assert wrapped(x).shape == x.shape
    finally:
        dist.destroy_process_group()


def one_of_two(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    norm, x = make_step()
    torch.save(run_step(sync_like(norm), x[:2] if rank == 0 else x[2:]), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_sync_over_cpu_processes_is_batch_norm_of_the_whole_batch(tmp_path):
    mp.spawn(one_of_two, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name, expected in run_step(*make_step()).items():
        if name in ("y", "x.grad"):
            actual = torch.cat([first[name], second[name]])
        elif name.endswith("grad"):
            actual = first[name] + second[name]
        else:
            actual = first[name]
            torch.testing.assert_close(second[name], actual)
        torch.testing.assert_close(actual, expected, msg=lambda text, name=name: f"{name}: {text}")
