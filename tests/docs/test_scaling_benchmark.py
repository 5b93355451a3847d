"""benchmarks/scaling.py: counts, steps without exchange, summaries."""

import socket
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import scaling
from scaling import Side, Times, rows, summary, watch_exchange


@pytest.fixture
def group():
    """Make a process group of this process alone."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_the_exchange_is_counted_and_can_be_left_out(group, monkeypatch):
    exchanged = []

    def reduce(group, bucket):
        exchanged.append(bucket.buffer().numel())
        done = torch.futures.Future()
        done.set_result(bucket.buffer() / 2)
        return done

    monkeypatch.setattr(scaling, "allreduce_hook", reduce)
    model = DistributedDataParallel(nn.Linear(30, 7, bias=False))
    exchange = watch_exchange(model)
    model(torch.ones(2, 30)).sum().backward()
    assert (model.module.weight.grad == 1).all()  # each of two images gives 1, and the exchange halves
    exchange.left_out = True
    model.zero_grad()
    model(torch.ones(2, 30)).sum().backward()
    assert sum(exchanged) == 30 * 7 and exchange.bytes == 4 * 30 * 7  # of the first step alone
    assert (model.module.weight.grad == 2).all()
    assert watch_exchange(nn.Linear(2, 2)) is None


def step(data, rest, left_out=False, sent=0):
    return {"data": data, "rest": rest, "left_out": left_out, "bytes": sent}


def test_the_summary_has_the_medians_of_each_part():
    runs = [
        {"steps": [step(1, 10, sent=8), step(1, 7, True), step(3, 14, sent=8)], "alone": 2.0},
        {"steps": [step(2, 12, sent=8), step(2, 9, True), step(2, 8, True)], "alone": 4.0},
    ]
    # medians: of steps 11, 14, 17; of data 1, 2, 3; of the rest 10, 12, 14, and without exchange 7, 8, 9
    assert summary(runs) == Times(step=14, data=2, compute=8, communication=4, alone=3.0, bytes=8)
    alone = [{"steps": [{"data": 1, "rest": 5, "left_out": False}], "alone": 0.0}]
    assert summary(alone) == Times(step=6, data=1, compute=5, communication=0, alone=0.0, bytes=0)


def test_the_rows_of_the_table():
    times = {
        Side(1, 1): Times(4.0, 0.0, 4.0, 0.0, 0.0, 0),
        Side(1, 2): Times(2.0, 0.0, 2.0, 0.0, 0.0, 0),
        Side(2, 1): Times(2.5, 0.0, 2.0, 0.5, 0.25, 99),
    }
    last = rows(times, images=10)[-1]
    assert last == ["2 x 1", "4.00", "1.60x", "0.80x", "2.50 s", "0.00 s", "2.00 s", "0.50 s"]


def test_options_override_the_config():
    opts = scaling.options(SOLVER__MAX_ITER=6)
    cfg = scaling.load_config(scaling.CONFIG, opts)
    assert (cfg.SOLVER.MAX_ITER, cfg.DATASETS.TRAIN) == (6, ("shapes_panoptic_train",))


def test_the_sentence_on_the_exchange():
    one, two = Times(4.0, 0.0, 4.0, 0.0, 0.0, 0), Times(2.5, 0.0, 2.0, 0.5, 0.25, 2_500_000)
    assert "2.5 MB of gradients" in scaling.exchanged(one, two) and "0.25 s" in scaling.exchanged(one, two)
    assert "part of compute" in scaling.exchanged(one, one)


def test_sides_take_turns(monkeypatch):
    order = []

    def run_side(side, steps, opts):
        order.append(side)
        rest = 6.0 / (side.processes * side.threads) + len(order)  # a machine that gets slower
        return {"steps": [step(0.0, rest)] * steps, "alone": 0.0}

    monkeypatch.setattr(scaling, "run_side", run_side)
    monkeypatch.setattr(scaling, "usable_cores", lambda: 6)
    printed = scaling.report(2, 3, ["SOLVER.IMS_PER_BATCH", "4"])
    assert order == [Side(1, 1), Side(1, 6), Side(2, 3)] * 2
    # 7 and 10 s, 3 and 6 s, 4 and 7 s
    assert "| 1 x 1 | 0.47 |" in printed and "| 1 x 6 | 0.89 |" in printed
    assert "| 2 x 3 | 0.73 | 1.55x | 0.82x |" in printed
