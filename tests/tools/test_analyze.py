"""The analyze command: its output and errors, and docs/costs.md, which must show the same figures."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_runs import CONFIG, tiny_config, tiny_options

from mask2former.engine.build import build_model
from mask2former.modeling import mask_former
from mask2former.tools import analyze
from mask2former.tools.analyze import main, published_tables, time_parts
from mask2former.tools.flops import PARTS, MeanCost, count_cost
from mask2former.weights import model_zoo

PAGE = Path(__file__).parents[2] / "docs" / "costs.md"
TINY = ["--config-file", str(CONFIG), *tiny_options()]


def cells(text, name):
    """Return the numbers in the first row that starts with `name`."""
    row = next(line for line in text.splitlines() if line.startswith(name))
    return [float(cell) for cell in row.removeprefix(name).split()]


def test_a_report(capsys):
    assert main([*TINY, "--size", "50", "70", "--runs", "2"]) == 0
    out = capsys.readouterr().out
    assert "50 x 70 pixels, padded to 64 x 96" in out
    cost = count_cost(tiny_config(), (50, 70))
    parameters, flops, activations, milliseconds = cells(out, "backbone")
    assert parameters == pytest.approx(cost.parameters["backbone"] / 1e6, abs=0.006)
    assert flops == pytest.approx(cost.flops["backbone"].total() / 1e9, abs=0.006)
    assert activations == pytest.approx(cost.activations["backbone"] / 1e6, abs=0.06)
    assert milliseconds > 0
    assert re.search(r"[\d.]+ images per second, median of 2, on cpu", out)
    as_published = "as published, with mask logits at full size after every layer"
    assert f"{as_published}: {cost.full_size_flops / 1e9:.2f}" in out
    assert f"with norms and post-processing: {cost.published_flops / 1e9:.2f}" in out


def test_without_runs_nothing_is_timed(capsys, monkeypatch):
    monkeypatch.setattr(analyze, "time_parts", None)
    assert main([*TINY, "--runs", "0"]) == 0
    out = capsys.readouterr().out
    assert "64 x 85 pixels" in out  # 4:3, resized to the shorter side that the config names
    assert len(cells(out, "all")) == 3
    assert "second" not in out


def test_time_counts_for_its_part(monkeypatch):
    """Use a clock that advances only inside the parts, each by a known time."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(analyze.time, "perf_counter", lambda: clock.now)
    model = build_model(tiny_config()).eval()
    seconds = dict(zip(PARTS, (1, 20, 300), strict=True))

    def slow(function, spent):
        def run(*inputs, **options):
            clock.now += spent
            return function(*inputs, **options)

        return run

    for part, path in PARTS.items():
        module = model.get_submodule(path)
        module.forward = slow(module.forward, seconds[part])
    monkeypatch.setattr(mask_former, "post_process", slow(mask_former.post_process, 4000))
    expected = {"normalize and pad": 0, **seconds, "post-processing": 4000, "all": 4321}
    assert time_parts(model, (64, 64), runs=3) == expected


def test_every_query_is_kept_while_panoptic_is_timed():
    model = build_model(tiny_config(MODEL__MASK_FORMER__TEST__OBJECT_MASK_THRESHOLD=0.9)).eval()
    time_parts(model, (64, 64), runs=1)
    assert model.inference.object_mask_threshold == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-file", "gone.yaml"], "no config file 'gone.yaml'"),
        ([*TINY, "MODEL.WEIGHT", "x"], "did you mean MODEL.WEIGHTS"),
        ([*TINY, "SEED"], "SEED is alone"),
        ([*TINY, "MODEL.DEVICE", "cuda:9"], "MODEL.DEVICE is 'cuda:9'"),
        ([*TINY, "MODEL.BACKBONE.NAME", "ResNext"], "MODEL.BACKBONE.NAME"),
        ([*TINY, "MODEL.MASK_FORMER.NHEADS", "5"], "MODEL.MASK_FORMER.NHEADS"),
        ([*TINY, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "7"], "NUM_CLASSES was given as 7"),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, message):
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_too_little_memory_is_one_line(capsys, monkeypatch):
    def refuse(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    monkeypatch.setattr(analyze, "time_parts", refuse)
    assert main(TINY) == 1
    assert "error: CUDA out of memory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either --config-file or --published or --tables"),
        ([*TINY, "--published"], "either --config-file or --published"),
        (["--published", "--tables"], "either --config-file or --published"),
        (["--published", "--size", "8", "8"], "--size and keys need --config-file"),
        (["--tables", "SEED", "1"], "--size and keys need --config-file"),
        ([*TINY, "--recount"], "--recount needs --published or --tables"),
        ([*TINY, "--size", "0", "64"], "at least 1, not '0'"),
        ([*TINY, "--size", "64", "wide"], "not 'wide'"),
        ([*TINY, "--size", "64"], "expected 2 arguments"),
        ([*TINY, "--runs", "-1"], "--runs"),
    ],
)
def test_wrong_flags(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_the_page_ends_with_what_the_command_prints(capsys):
    assert main(["--published"]) == 0
    assert PAGE.read_text(encoding="utf-8").endswith(f"\n\n{capsys.readouterr().out}")


def test_tables_of_the_published_configs(monkeypatch):
    models = {f"{name}.yaml": {"backbone": "X"} for name in ("coco/a", "ade20k/b", "coco/c")}
    monkeypatch.setattr(model_zoo, "table", lambda: {"models": models})
    cost = MeanCost(parameters=44_040_000, published=1.26e9, full_size_masks=1.14e9, here=1e9)
    monkeypatch.setattr(analyze, "read_costs", lambda configs: dict.fromkeys(configs, cost))
    cells = "| X | 44.0 | 1.3 | 1.1 | 1.0 |"
    assert re.findall(r"^(?:###|\| \[).*", published_tables(), re.MULTILINE) == [
        "### coco",
        f"| [a](../configs/coco/a.yaml) {cells}",
        f"| [c](../configs/coco/c.yaml) {cells}",
        "### ade20k",
        f"| [b](../configs/ade20k/b.yaml) {cells}",
    ]
