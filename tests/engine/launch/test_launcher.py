"""Launch flags and launched processes."""

import argparse
import sys

import pytest
import torch
from process_runs import free_port

from mask2former.engine.errors import ProcessError
from mask2former.engine.launch.flags import add_arguments
from mask2former.engine.launch.launcher import (
    Processes,
    device_of_started,
    launch,
    plan_processes,
)
from mask2former.engine.launch.rendezvous import interface_towards
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
    assert capsys.readouterr().err == "no GPU is usable here: running on the CPU\n"
    plan_processes(flags("--num-processes", "2"), gpus=0)
    assert capsys.readouterr().err == ""


def report_place(args, device):
    (args.folder / str(rank())).write_text(f"{device} {world_size()}")
    if args.exits and is_main_process():
        sys.exit(7)  # as after output that is lost
    return 7 if is_main_process() else 0


@pytest.mark.parametrize("exits", [False, True])
def test_launch_runs_every_process_and_returns_the_code_of_the_first(tmp_path, exits):
    args = flags("--num-processes", "2")
    args.folder, args.exits = tmp_path, exits
    assert launch(report_place, args) == 7
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"0": "cpu 2", "1": "cpu 2"}


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
        launch(report_place, flags("--timeout", "1"))


def test_launch_checks_the_flags_of_torchruns_processes(started_as_first_of):
    started_as_first_of(2)
    with pytest.raises(ValueError, match="torchrun has its own"):
        launch(report_place, flags("--max-restarts", "2"))


def test_interface_towards_a_host():
    assert interface_towards("127.0.0.2") == "lo"
    assert interface_towards("no host") == ""
