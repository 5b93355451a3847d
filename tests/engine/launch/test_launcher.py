"""Launch flags, and training in two processes that equals training in one."""

import argparse
import math

import pytest
import torch
from process_runs import free_port
from tiny_runs import random_sample, tiny_config

from mask2former.engine.build import build_model
from mask2former.engine.errors import ProcessError
from mask2former.engine.launch.launcher import (
    Processes,
    add_arguments,
    device_of_started,
    launch,
    plan_processes,
)
from mask2former.engine.launch.rendezvous import interface_towards
from mask2former.engine.train import build_trainer
from mask2former.engine.trainer import Hook
from mask2former.utils.comm import is_main_process, rank, world_size


def flags(*argv):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(argv)


@pytest.mark.parametrize(
    ("argv", "gpus", "plan"),
    [
        ([], 0, Processes("cpu", 1)),
        ([], 8, Processes("cuda", 1)),
        (["--num-gpus", "0"], 8, Processes("cpu", 1)),
        (["--num-gpus", "8"], 8, Processes("cuda", 8)),
        (["--num-processes", "2"], 8, Processes("cpu", 2)),
        (
            ["--num-gpus", "4", "--num-machines", "2", "--machine-rank", "1", "--dist-url", "tcp://a:1"],
            4,
            Processes("cuda", 4, 2, 1, "tcp://a:1"),
        ),
    ],
)
def test_flags_select_processes(argv, gpus, plan):
    assert plan_processes(flags(*argv), gpus) == plan


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--num-gpus", "2"], "--num-gpus 2, but this machine has 1"),
        (["--num-gpus", "1", "--num-processes", "2"], "exclude each other"),
        (["--num-gpus", "-1"], "must be positive"),
        (["--num-processes", "-3"], "must be positive"),
        (["--num-machines", "0"], "must be positive"),
        (["--num-machines", "2", "--machine-rank", "2", "--dist-url", "tcp://a:1"], "--machine-rank"),
        (["--num-machines", "2"], "--dist-url is 'auto'"),
        (["--max-restarts", "-1"], "--max-restarts must not be negative"),
        (["--timeout", "0"], "--timeout must be positive"),
    ],
)
def test_invalid_flags(argv, message):
    with pytest.raises(ValueError, match=message):
        plan_processes(flags(*argv), gpus=1)


def test_a_missing_gpu_is_printed_in_one_line(capsys):
    plan_processes(flags(), gpus=0)
    assert capsys.readouterr().out == "no GPU is usable here: running on the CPU\n"
    plan_processes(flags("--num-processes", "2"), gpus=0)
    assert capsys.readouterr().out == ""


class Recorder(Hook):
    def __init__(self):
        self.losses = []

    def after_step(self, trainer):
        self.losses.append(trainer.last.losses)


OBJECTS = {"mixed": (3, 1, 8, 2), "one process always empty": (3, 2, 0, 0), "all empty": (0, 0, 0, 0)}
STEPS = 4


def step_images(step, numbers, objects, poison):
    """Return the images `numbers` of a step; `poison` is the (step, number) of a non-finite one."""
    images = [random_sample(10 * step + number, objects[number]) for number in numbers]
    for number, image in zip(numbers, images, strict=True):
        if (step, number) == poison:
            image["image"] = torch.full_like(image["image"], float("nan"), dtype=torch.float32)
    return images


def train_share(objects, poison=None, steps=STEPS, **changes):
    """Train on this rank's share of the images; return the losses of each step and the final weights."""
    cfg = tiny_config(SOLVER__MAX_ITER=steps, SOLVER__IMS_PER_BATCH=4, SOLVER__OPTIMIZER="SGD", **changes)
    cfg.SOLVER.BASE_LR = 0.01
    torch.manual_seed(rank())  # different initial weights, which the engine must synchronize,
    model = build_model(cfg)
    with torch.no_grad():
        for buffer in model.buffers():  # and different batch-norm statistics
            buffer += rank()
    trainer = build_trainer(cfg, model)
    recorder = Recorder()
    share = 4 // world_size()
    numbers = range(rank() * share, (rank() + 1) * share)
    trainer.train([step_images(step, numbers, objects, poison) for step in range(steps)], [recorder])
    return recorder.losses, trainer.plain_model.state_dict()


def train_all(args, device):
    assert device == "cpu" and world_size() == 2
    found = {name: train_share(objects) for name, objects in OBJECTS.items()}
    found["poisoned"] = train_share(OBJECTS["mixed"], poison=(1, 3))
    found["accumulated"] = train_share(OBJECTS["mixed"], SOLVER__ACCUMULATION_STEPS=2)
    found["always empty for long"] = train_share(OBJECTS["one process always empty"], steps=20)
    torch.save(found, args.folder / f"{rank()}.pth")
    return 7 if is_main_process() else 0


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Return the results of both processes of one launch, by rank."""
    args = flags("--num-processes", "2")
    args.folder = tmp_path_factory.mktemp("two")
    assert launch(train_all, args) == 7
    return [torch.load(args.folder / f"{number}.pth", weights_only=True) for number in range(2)]


@pytest.mark.parametrize("name", OBJECTS)
def test_two_processes_train_as_one(two_processes, name):
    losses, weights = train_share(OBJECTS[name])
    for step, (alone, together) in enumerate(zip(losses, two_processes[0][name][0], strict=True)):
        assert together == pytest.approx(alone, rel=1e-3, abs=1e-5), f"step {step}"
    for key, tensor in weights.items():
        torch.testing.assert_close(two_processes[0][name][1][key], tensor, rtol=1e-3, atol=1e-5, msg=key)


def test_a_non_finite_image_on_one_rank_makes_both_skip_the_step(two_processes):
    alone, together = train_share(OBJECTS["mixed"], poison=(1, 3)), two_processes[0]["poisoned"]
    for losses, weights in (alone, together):
        assert [math.isfinite(sum(step.values())) for step in losses] == [True, False, True, True]
        for key, tensor in alone[1].items():
            assert torch.isfinite(tensor).all()
            torch.testing.assert_close(weights[key], tensor, rtol=1e-3, atol=1e-5, msg=key)


@pytest.mark.parametrize("name", [*OBJECTS, "poisoned", "accumulated", "always empty for long"])
def test_processes_stay_equal(two_processes, name):
    (losses, weights), (other_losses, other_weights) = (results[name] for results in two_processes)
    assert str(losses) == str(other_losses)  # as text, since NaN is not equal to itself
    for key, tensor in weights.items():
        assert torch.equal(tensor, other_weights[key]), key


@pytest.fixture
def started_as_first_of(monkeypatch):
    """Return a function that makes this process rank 0 of torchrun's `total`, and returns the port."""

    def make(total):
        place = {"MASTER_ADDR": "localhost", "MASTER_PORT": free_port()}
        for name, value in {"RANK": 0, "WORLD_SIZE": total, "LOCAL_RANK": 0, **place}.items():
            monkeypatch.setenv(name, str(value))
        return place["MASTER_PORT"]

    return make


def test_a_process_of_torchrun_joins_the_group(started_as_first_of):
    started_as_first_of(1)

    def work(args, device):
        assert torch.distributed.is_initialized() and torch.distributed.get_world_size() == 1
        return 5

    assert launch(work, flags("--num-processes", "1")) == 5
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("argv", "here", "gpus", "device"),
    [
        ([], 8, 8, "cuda"),
        ([], 8, 1, "cuda"),  # SLURM shows each task its own GPU
        ([], 8, 0, "cpu"),
        (["--num-gpus", "0"], 8, 8, "cpu"),
        (["--num-gpus", "8"], 8, 8, "cuda"),
        (["--num-processes", "2"], 2, 8, "cpu"),
    ],
)
def test_the_device_of_a_started_process(monkeypatch, argv, here, gpus, device):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
    assert device_of_started(flags(*argv), gpus, "torchrun") == device


@pytest.mark.parametrize(
    ("argv", "starter", "message"),
    [
        (["--num-gpus", "2"], "torchrun", "--num-gpus 2, but torchrun has started 4 processes"),
        (["--num-processes", "2"], "srun", "--num-processes 2, but srun has started 4 processes"),
        (["--num-gpus", "4"], "torchrun", "--num-gpus 4, but this machine has 3"),
        ([], "torchrun", "has started 4 processes on this machine, which has 3 GPUs"),
        (["--max-restarts", "2"], "torchrun", "torchrun has its own"),
        (["--max-restarts", "2"], "srun", "of srun's tasks those with --num-gpus can"),
    ],
)
def test_flags_that_contradict_the_launcher(monkeypatch, argv, starter, message):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(ValueError, match=message):
        device_of_started(flags(*argv), 3, starter)


@pytest.mark.parametrize("store_of_launcher", [False, True])
def test_a_failed_connection_names_the_missing_ranks(started_as_first_of, monkeypatch, store_of_launcher):
    port = started_as_first_of(2)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    if store_of_launcher:
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
        _kept = torch.distributed.TCPStore("localhost", port, is_master=True, wait_for_workers=False)
    last = "missing: 1" if store_of_launcher else ""
    message = rf"process 0 did not meet .*:{port} within 1 s \(--timeout\).*{last}"
    with pytest.raises(ProcessError, match=message):
        launch(train_all, flags("--timeout", "1"))


def test_launch_checks_the_flags_of_torchruns_processes(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="torchrun has its own"):
        launch(train_all, flags("--max-restarts", "2"))


def test_interface_towards_a_host():
    assert interface_towards("127.0.0.2") == "lo"
    assert interface_towards("no host") == ""
