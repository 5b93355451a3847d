"""docs/scaling.md: its tables are computed, their formulae hold for the engine, its commands are taken."""

import math
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tiny_runs import tiny_config
from torch.distributed.run import get_args_parser
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from mask2former.config import load_config
from mask2former.engine.build import build_model
from mask2former.engine.parallel import is_sharded, parallelize
from mask2former.tools.train import parse_arguments

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import scaling_costs as costs  # noqa: E402
from scaling_costs import Weights, weights_of  # noqa: E402

PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
CONFIG = re.search(r"^CONFIG=(\S+)", PAGE, re.MULTILINE)[1]
OURS = {"mask2former-train", "train_net.py"}


@pytest.mark.parametrize("table", [costs.parts_table, costs.costs_table])
def test_the_page_shows_what_the_script_computes(table):
    assert table() in PAGE


def test_parameters_are_the_papers():
    """Table 1 and 2 of the paper: 44M and 216M."""
    counts = [costs.weights_of_config(config).parameters for config in costs.CONFIGS.values()]
    assert [round(count / 1e6) for count in counts] == [44, 216]


def ring_all_reduce(vectors):
    """The textbook's ring, chunk by chunk; what each process sent."""
    n = len(vectors)
    chunks = [list(vector.chunk(n)) for vector in vectors]
    sent = [0] * n
    for phase, add in enumerate((True, False)):
        for step in range(n - 1):
            outgoing = [(p, (p + phase - step) % n) for p in range(n)]
            values = [chunks[p][c].clone() for p, c in outgoing]
            for (p, c), value in zip(outgoing, values, strict=True):
                sent[p] += value.nbytes
                to = chunks[(p + 1) % n]
                to[c] = to[c] + value if add else value
    return [torch.cat(own) for own in chunks], sent


@pytest.mark.parametrize("n", [2, 3, 8])
def test_what_ddp_sends(n):
    size = 24 * n
    vectors = [torch.randn(size, dtype=torch.float32) for _ in range(n)]
    reduced, sent = ring_all_reduce(vectors)
    for vector in reduced:
        torch.testing.assert_close(vector, torch.stack(vectors).sum(0))
    expected = costs.ddp_sent(Weights([], [torch.Size([size])]), n)
    assert sent == [expected] * n


class Sent(TorchDispatchMode):
    """Bytes that rings of so many processes send, by collective."""

    def __init__(self):
        super().__init__()
        self.bytes = {"_allgather_base_": 0, "_reduce_scatter_base_": 0}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("c10d::").split(".")[0]
        if name in self.bytes:
            whole = max(tensor.nbytes for tensor in args[:2])
            self.bytes[name] += whole * (dist.get_world_size() - 1) // dist.get_world_size()
        return func(*args, **(kwargs or {}))


@pytest.fixture
def pretended(request):
    """This is the first of so many processes; the others are pretended."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=request.param)
    yield request.param
    dist.destroy_process_group()


@pytest.mark.parametrize("pretended", [2, 8, 48], indirect=True)
def test_what_fsdp_keeps_and_sends(pretended, monkeypatch):
    """48 processes are more than many parameters have rows, and divide none of them."""
    model = build_model(tiny_config())
    weights = weights_of(model)

    def forward(images):  # pretended processes send nothing: what is gathered is no weight, and has no loss
        last = model.network(images)
        return last.mask_logits().sum() + sum(layer.class_logits.sum() for layer in last.layers)

    model.forward = forward
    sharded = parallelize(tiny_config(SOLVER__STRATEGY="fsdp"), model)
    assert is_sharded(sharded) and len(weights.units) > 8
    kept = sum(parameter.to_local().numel() for parameter in sharded.parameters())
    assert kept == costs.share(weights.in_units, pretended) + costs.share(weights.rest, pretended)
    with Sent() as sent:
        sharded(torch.zeros(1, 3, 64, 64)).backward()
    assert all(sent.bytes.values())
    assert sum(sent.bytes.values()) == costs.fsdp_sent(weights, pretended)


def commands():
    """Every command of the page that starts our program, as words without what starts it."""
    blocks = re.findall(r"^```(?:sh)?\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line.replace("$CONFIG", CONFIG), comments=True) for line in lines]
    return [line for line in words if OURS & set(line)]


def own_words(words):
    """What follows the name of our program."""
    start = next(i for i, word in enumerate(words) if word in OURS)
    return words[start + 1 :]


def test_the_page_has_commands():
    launchers = {words[0] for words in commands()}
    assert {"mask2former-train", "torchrun", "srun"} <= launchers


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(own_words(words))[-60:])
def test_a_command_is_taken(words):
    args = parse_arguments(own_words(words))
    load_config(args.config_file, args.opts)
    if words[0] == "torchrun":
        launcher = get_args_parser().parse_args(words[1:])
        assert launcher.training_script == "train_net.py"
        assert launcher.training_script_args == own_words(words)


def test_the_table_of_rates():
    """It starts from the published schedule; so many times more images a step, so many fewer steps."""
    cfg = load_config(CONFIG)
    batch, steps, rate = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR
    found = re.findall(r"^\| (\d+) \| ([\d,]+) \| (0\.\d+) \| (0\.\d+) \|$", PAGE, re.MULTILINE)
    assert [int(row[0]) for row in found] == [batch, 64, 512]
    for row in found:
        images, printed, root, linear = (float(cell.replace(",", "")) for cell in row)
        growth = images / batch
        assert printed == math.ceil(steps / growth)
        assert (root, linear) == pytest.approx((rate * growth**0.5, rate * growth), rel=0.01)


def test_keys_in_the_text_exist():
    cfg = load_config(next(iter(costs.CONFIGS.values())))
    named = set(re.findall(r"`((?:[A-Z]+\.)+[A-Z_]+)", PAGE))
    assert len(named) > 5
    for key in named:
        node = cfg
        for part in key.split("."):
            assert part in node, key
            node = node[part]
