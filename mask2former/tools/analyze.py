"""The command `mask2former analyze`: count what the parts of a model cost, and time them.

Counting needs neither weights nor memory: see `mask2former/tools/flops.py`. Timing runs the model with random
weights on an image of noise, on MODEL.DEVICE. Its panoptic post-processing keeps every query, which is the
most work it can have.
"""

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import cast

import torch
from fvcore.common.config import CfgNode
from tabulate import tabulate
from torch import Tensor

from mask2former.config import load_config
from mask2former.engine.build import build_model
from mask2former.engine.setup.dataset_facts import with_dataset_facts
from mask2former.engine.setup.device import resolve_device
from mask2former.engine.setup.threads import share_processor
from mask2former.modeling.mask_former import MaskFormer
from mask2former.tools.arguments.analyze import parse_arguments
from mask2former.tools.flops import (
    GIGA,
    KINDS,
    MILLION,
    REST,
    TRAINING,
    Cost,
    Size,
    count_cost,
    parts_of,
    usual_images,
)
from mask2former.tools.paper.costs import read_costs, recount
from mask2former.tools.paper.tables import counted_configs, markdown, page, read_tables
from mask2former.utils.aliases import run_alias
from mask2former.utils.messages import plural
from mask2former.utils.output import print_error
from mask2former.weights import model_zoo

PADDING = "normalize and pad"
PUBLISHED_COLUMNS = [
    "config",
    "backbone",
    "parameters M",
    "GFLOPs as the authors counted",
    "GFLOPs with full-size masks",
    "GFLOPs here",
]


def time_parts(model: MaskFormer, size: Size, runs: int) -> dict[str, float]:
    """Return the median seconds of each part, and of "all", for an image of `size` over `runs` runs."""
    model.inference = replace(model.inference, object_mask_threshold=0.0)
    pixels = torch.randint(0, 256, (len(model.pixel_mean), *size), generator=torch.Generator().manual_seed(0))
    image = pixels.to(model.device, torch.uint8)
    timed = [_time_once(model, image) for _ in range(1 + runs)][1:]
    names = (PADDING, *parts_of(model), REST)
    parts = {part: statistics.median(seconds[part] for seconds in timed) for part in names}
    return {**parts, "all": statistics.median(sum(seconds.values()) for seconds in timed)}


def _time_once(model: MaskFormer, image: Tensor) -> dict[str, float]:
    """Return the seconds of each part; the time before the first one is PADDING's, after each one REST's."""
    marks = [(PADDING, _now(model.device))]

    def enter(part: str) -> None:
        marks.append((part, _now(model.device)))

    hooks = []
    for part, module in parts_of(model).items():
        hooks.append(module.register_forward_pre_hook(lambda *_, part=part: enter(part)))
        hooks.append(module.register_forward_hook(lambda *_: enter(REST)))
    model.predict([{"image": image}])
    enter(REST)
    for hook in hooks:
        hook.remove()
    seconds: dict[str, float] = defaultdict(float)
    for (part, start), (_, end) in pairwise(marks):
        seconds[part] += end - start
    return seconds


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def part_table(cost: Cost, seconds: Mapping[str, float]) -> str:
    """Return a table with a row for each part and one for all; times only if there are any."""
    rows = []
    for part in cost.flops:
        parameters, activations = cost.parameters.get(part, 0), cost.activations[part]
        rows.append([part, parameters / MILLION, cost.flops[part].total() / GIGA, activations / MILLION])
    if TRAINING in cost.parameters:
        rows.append([TRAINING, cost.parameters[TRAINING] / MILLION, 0.0, 0.0])
    rows.append(["all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])])
    heads = ["part", "parameters M", "GFLOPs", "activations M"]
    if seconds:
        rows.insert(0, [PADDING, 0.0, 0.0, 0.0])
        rows = [[*row, seconds.get(str(row[0]), 0.0) * 1000] for row in rows]
        heads.append("ms")
    return tabulate(rows, heads, floatfmt=("", ".2f", ".2f", ".1f", ".1f"))


def kind_table(cost: Cost) -> str:
    """Return a table of the GFLOPs of each part by kind."""
    rows = [[part, *(flops[kind] / GIGA for kind in KINDS)] for part, flops in cost.flops.items()]
    return tabulate(rows, ["GFLOPs", *KINDS], floatfmt=".2f")


def analyze(cfg: CfgNode, size: Size, runs: int) -> str:
    """Return the report on one config, for an image of `size`.

    Raises:
        ValueError: the config is wrong, or its model has other parts.
        RuntimeError: the device cannot run the model, for example because its memory is too small.
    """
    cost = count_cost(cfg, size)
    windows, _, height, width = cost.input_shape
    seen = "padded to" if windows == 1 else f"in {windows} windows of"
    title = f"an image of {size[0]} x {size[1]} pixels, {seen} {height} x {width}"
    device, seconds = resolve_device(cfg.MODEL.DEVICE), dict[str, float]()
    notes = []
    counted, is_upernet = cost.published_flops / GIGA, "full-size masks" not in cost.published
    if counted and is_upernet:
        notes.append(f"as mmsegmentation counts, without attention: {counted:.2f} GFLOPs")
    elif counted:
        full_size = cost.full_size_flops / GIGA
        notes.append(f"as published, with mask logits at full size after every layer: {full_size:.2f} GFLOPs")
        notes.append(f"as the authors counted, with norms and post-processing: {counted:.2f} GFLOPs")
    if runs:
        seconds = time_parts(cast(MaskFormer, build_model(cfg).eval()), size, runs)
        machine = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
        notes.append(
            f"{1 / seconds['all']:.2f} images per second, median of {runs}, on {machine}, "
            f"{plural(torch.get_num_threads(), 'CPU thread')}"
        )
    return "\n\n".join((title, part_table(cost, seconds), kind_table(cost), "\n".join(notes)))


def published_tables() -> str:
    """Return one Markdown table for each folder of published configs.

    Raises:
        ValueError: a config has not been counted.
    """
    models = model_zoo.table()["models"]
    costs = read_costs(list(models))
    tables: dict[str, list[list[str]]] = {}
    for config, cost in costs.items():
        folder, title = config.removesuffix(".yaml").split("/", 1)
        flops = (cost.published / GIGA, cost.full_size_masks / GIGA, cost.here / GIGA)
        figures = [f"{figure:.1f}" for figure in (cost.parameters / MILLION, *flops)]
        row = [f"[{title}](../configs/{config})", models[config]["backbone"], *figures]
        tables.setdefault(folder, [PUBLISHED_COLUMNS]).append(row)
    return "\n\n".join(f"### {folder}\n\n{markdown(rows)}" for folder, rows in tables.items())


def report(args: argparse.Namespace) -> str:
    """Return what the flags ask for.

    Raises:
        ValueError: the config is wrong, or its model has other parts.
        OSError: a file cannot be read or written.
        RuntimeError: the device cannot run the model.
    """
    if args.recount is not None:
        configs = dict.fromkeys([*model_zoo.table()["models"], *counted_configs(read_tables())])
        recount(list(configs), args.recount)
    if args.published or args.tables:
        return page() if args.tables else published_tables()
    cfg = with_dataset_facts(load_config(args.config_file, args.opts))
    return analyze(cfg, tuple(args.size) if args.size else usual_images(cfg)[0].size, args.runs)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if done, 1 if the config is wrong or cannot run, 2 for wrong flags."""
    return run(parse_arguments(argv))


def run(args: argparse.Namespace) -> int:
    """Print the report that the flags ask for; return 0, or 1 if the config is wrong or cannot run."""
    share_processor()
    try:
        print(report(args))
    except (ValueError, OSError, RuntimeError) as error:
        print_error(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run_alias("python -m mask2former.tools.analyze", "analyze", main))
