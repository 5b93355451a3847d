"""docs/scaling.md and scaling_costs.md: tables are computed, formulas hold, commands and keys are valid."""

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
from mask2former.engine.parallel import parallelize
from mask2former.tools.train import parse_arguments
from mask2former.utils.sharding import is_sharded

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import scaling_costs as costs  # noqa: E402
from scaling_costs import Weights, weights_of  # noqa: E402

PAGE, COSTS = ((ROOT / "docs" / f"{name}.md").read_text("utf-8") for name in ("scaling", "scaling_costs"))
CONFIG = re.search(r"^CONFIG=(\S+)", PAGE, re.MULTILINE)[1]
OURS = re.compile(r"(?:mask2former train|mask2former-train|train_net\.py) (.*)")


@pytest.mark.parametrize("table", [costs.parameters_table, costs.costs_table])
def test_the_page_shows_the_computed_tables(table):
    assert table() in COSTS


def test_parameter_counts_are_those_of_the_paper():
    """Tables 1 and 2 of the paper: 44M and 216M."""
    counts = [costs.weights_of_config(config).parameters for config in costs.CONFIGS.values()]
    assert [round(count / 1e6) for count in counts] == [44, 216]


def ring_all_reduce(vectors):
    """Return the sums of a ring all-reduce, chunk by chunk, and the bytes that each process sent."""
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
def test_ddp_sends_what_the_formula_says(n):
    size = 24 * n
    vectors = [torch.randn(size, dtype=torch.float32) for _ in range(n)]
    reduced, sent = ring_all_reduce(vectors)
    for vector in reduced:
        torch.testing.assert_close(vector, torch.stack(vectors).sum(0))
    expected = costs.ddp_sent(Weights([], [torch.Size([size])]), n)
    assert sent == [expected] * n


class Sent(TorchDispatchMode):
    """Bytes that ring collectives send, by collective."""

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
def fake_processes(request):
    """Make this process rank 0 of a fake process group."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=request.param)
    yield request.param
    dist.destroy_process_group()


@pytest.mark.parametrize("fake_processes", [2, 8, 48], indirect=True)
def test_fsdp_keeps_and_sends_what_the_formulas_say(fake_processes):
    """48 processes are more than many parameters have rows, and divide none of them."""
    model = build_model(tiny_config())
    weights = weights_of(model)

    def forward(images):  # fake processes send nothing, so that gathered weights are wrong: no real loss
        last = model.network(images)
        return last.mask_logits().sum() + sum(layer.class_logits.sum() for layer in last.layers)

    model.forward = forward
    sharded = parallelize(tiny_config(SOLVER__STRATEGY="fsdp"), model)
    assert is_sharded(sharded) and len(weights.units) > 8
    kept = sum(parameter.to_local().numel() for parameter in sharded.parameters())
    assert kept == costs.shard(weights.in_units, fake_processes) + costs.shard(weights.rest, fake_processes)
    with Sent() as sent:
        sharded(torch.zeros(1, 3, 64, 64)).backward()
    assert all(sent.bytes.values())
    assert sum(sent.bytes.values()) == costs.fsdp_sent(weights, fake_processes)


def commands():
    """Return (what starts our program, its arguments) of every command of the page."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = [(line[: match.end()], match[1]) for line in lines if (match := OURS.search(line))]
    split = [[shlex.split(text.replace("$CONFIG", CONFIG), comments=True) for text in pair] for pair in found]
    return [(words[: len(words) - len(arguments)], arguments) for words, arguments in split]


def test_the_page_has_a_command_for_each_launcher():
    assert {starter[0] for starter, _ in commands()} == {"mask2former", "torchrun", "srun"}


@pytest.mark.parametrize(("starter", "arguments"), commands(), ids=lambda words: " ".join(words)[-60:])
def test_commands_are_valid(starter, arguments):
    args = parse_arguments(arguments)
    load_config(args.config_file, args.opts)
    if starter[0] == "torchrun":
        launcher = get_args_parser().parse_args([*starter[1:], *arguments])
        assert (launcher.training_script, launcher.training_script_args) == ("train_net.py", arguments)


def test_larger_steps_are_fewer_and_have_larger_rates():
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
    named = set(re.findall(r"`((?:[A-Z]+\.)+[A-Z_]+)", PAGE + COSTS))
    assert len(named) > 5
    for key in named:
        node = cfg
        for part in key.split("."):
            assert part in node, key
            node = node[part]
