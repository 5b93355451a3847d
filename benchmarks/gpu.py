"""All checks and measurements on a GPU: correctness of the operator and the model, and their speed.

    python benchmarks/gpu.py [check] [operator] [inference] [training]

Checks come first, and end the run where they fail: every backend that works on the device, forward and
backward, for each type, against PyTorch in float64; the operator's own tests; the model's recorded answers.
Then one table of times, with torch's default settings (of fp32, convolutions may use TF32). Kernels are timed
by events around the replay of a graph that goes through several sets of inputs, so that neither Python nor a
warm L2 cache is in the figures.

Floors of the operator's forward: the time to move each tensor once at the copy speed of this device, and the
time to bring what is gathered through L1, at 128 bytes a clock and multiprocessor and `CLOCK`.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from gpu_checks import TESTS, Inputs, Sizes, check_model, check_operator, draw
from measure import MB, machine, table
from torch import Tensor

from mask2former.config import load_config
from mask2former.engine.build import build_model
from mask2former.engine.optim import build_optimizer
from mask2former.ops import ms_deform_attn_from_offsets, reference
from mask2former.structures import Instances

CONFIG = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
OPTIONS = {"DATASETS.TRAIN": (), "DATASETS.TEST": (), "MODEL.MASK_FORMER.THING_IDS": list(range(80))}
CLOCK = 1.755e9  # Hz, of an H200 at work
SETS = 4  # of inputs: together more than L2 holds
RUNS = 30


def main() -> int:
    """Run the parts that the command line names, by default all."""
    sections = {"operator": operator_rows, "inference": inference_rows, "training": training_rows}
    parser = argparse.ArgumentParser(description="Check and measure what runs on a GPU.")
    parser.add_argument("parts", nargs="*", help=f"check, {', '.join(sections)}; without any, all of them")
    parts = parser.parse_args().parts or ["check", *sections]
    if unknown := set(parts) - {"check", *sections}:
        parser.error(f"there is no part {sorted(unknown)}")
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py needs a GPU, and torch sees none here")
        return 1
    device = torch.device("cuda")
    print(f"{torch.cuda.get_device_name()}; {machine()}; CUDA {torch.version.cuda}", end="\n\n")
    if "check" in parts:
        check(device)
    rows = [["what", "B", "type", "time", "with backward", "peak memory", "floors: DRAM / L1"]]
    for part in (part for part in parts if part != "check"):
        for row in sections[part](device, Sizes()):
            print("|", " | ".join(row), "|", flush=True)  # so that a run that is cut short has said something
            rows.append(row)
    print("\n" + table(rows))
    return 0


def check(device: torch.device) -> None:
    """Raise if the operator or the model is wrong on the device."""
    print(check_operator(device), end="\n\n")
    tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS / "ops")]
    subprocess.run([sys.executable, *tests], check=True)
    print(check_model(device), end="\n\n")


# ---- Times. ----


def seconds(device: torch.device, run: Callable[[], object], runs: int = RUNS) -> float:
    """Return the median of several synchronized runs; on a GPU by its own clock."""
    times = []
    for _ in range(runs + 3):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
        else:
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
    return statistics.median(times[3:])


def kernel_seconds(device: torch.device, calls: list[Callable[[], object]]) -> float:
    """Return the time of one of the calls; on a GPU a CUDA graph replays them in turn."""

    def all_calls() -> None:
        for call in calls:
            call()

    if device.type != "cuda":
        return seconds(device, all_calls) / len(calls)
    torch.cuda.synchronize()  # inputs come from another stream
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            all_calls()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        all_calls()
    return seconds(device, graph.replay) / len(calls)


def operator_rows(device: torch.device, sizes: Sizes) -> Iterator[list[str]]:
    """Measure our operator, PyTorch's grid_sample form, and deformops if it can be imported."""
    copy_speed, sides = _copy_speed(device), _operator_sides()
    for batch in (1, 8):
        for dtype in (torch.float32, torch.bfloat16):
            sets = [draw(sizes, batch, dtype, device, seed) for seed in range(SETS)]
            floors = _floors(device, sizes, sets[0], copy_speed)
            for name, side in sides.items():
                shown = [f"operator: {name}", str(batch), _name(dtype)]
                try:
                    with torch.no_grad():
                        forward = kernel_seconds(device, [partial(side, each) for each in sets])
                    both = kernel_seconds(device, [partial(_with_backward, side, each) for each in sets])
                except (
                    Exception
                ) as error:  # of another project, or a lack of memory: the other rows still count
                    yield [*shown, f"{type(error).__name__}: {str(error).splitlines()[0]}", "", "", floors]
                else:
                    yield [*shown, f"{1e6 * forward:.1f} us", f"{1e6 * both:.1f} us", "", floors]


def _operator_sides() -> dict[str, Callable[[Inputs], Tensor]]:
    """Return the differentiable forward of each side."""

    def ours(inputs: Inputs) -> Tensor:
        value, shapes, points, weights, origin, *_ = inputs
        return ms_deform_attn_from_offsets(value, shapes, origin, points, weights)

    def grid_sample(inputs: Inputs) -> Tensor:
        return reference.forward(reference.AttentionInputs(*inputs[:5]))

    sides: dict[str, Callable[[Inputs], Tensor]] = {"ours": ours, "grid_sample": grid_sample}
    try:
        from deformops.registry import msda
    except Exception as error:  # it may be missing, or not support the machine in any way
        print(f"deformops cannot be imported: {error}")
    else:
        sides["deformops, locations given"] = partial(_deformops, msda)
    return sides


def _deformops(msda: Any, inputs: Inputs) -> Tensor:
    """Call deformops with its fused softmax; locations are given, so it computes a little less than ours."""
    value, places, logits = inputs.value, inputs.places, inputs.logits
    return msda(value, inputs.sides, inputs.starts, places, logits, method="softmax")


def _with_backward(side: Callable[[Inputs], Tensor], inputs: Inputs) -> None:
    leaves = [inputs.value, inputs.points, inputs.weights, inputs.places, inputs.logits]
    for leaf in leaves:
        leaf.requires_grad_(True)
    torch.autograd.grad(side(inputs), leaves, inputs.grad, allow_unused=True)
    for leaf in leaves:
        leaf.requires_grad_(False)


def _copy_speed(device: torch.device) -> float:
    """Return the bytes per second, read and written, of a large copy on the device."""
    source = torch.empty(2**30 if device.type == "cuda" else 2**24, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds(device, lambda: target.copy_(source))


def _floors(device: torch.device, sizes: Sizes, inputs: Inputs, copy_speed: float) -> str:
    """Return the floors of the forward: all tensors once through DRAM, all corners through L1."""
    moved = sum(
        each.numel() * each.element_size()
        for each in (inputs.value, inputs.points, inputs.weights, inputs.grad)
    )
    gathered = inputs.weights.numel() * 4 * sizes.channels * inputs.value.element_size()
    processors = (
        torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    )
    return f"{1e6 * moved / copy_speed:.1f} / {1e6 * gathered / (128 * CLOCK * processors):.1f} us"


def _name(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]


# ---- The model. ----


def build(device: torch.device, compiled: bool) -> tuple[Any, Any]:
    """Return R50 with random weights and its config; `compiled` compiles the network after normalization."""
    cfg = load_config(
        CONFIG, [item for pair in {**OPTIONS, "MODEL.DEVICE": device.type}.items() for item in pair]
    )
    torch.manual_seed(0)
    model = build_model(cfg)
    if compiled:
        model.network = torch.compile(model.network)
    return model, cfg


def settings(device: torch.device) -> Iterator[tuple[str, str, bool, Any]]:
    """Yield type, mode, whether to compile, and the autocast context."""
    for dtype in (torch.float32, torch.bfloat16):
        for mode in ("eager", "compiled"):
            cast = torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)
            yield _name(dtype), mode, mode == "compiled", cast


def inference_rows(device: torch.device, sizes: Sizes) -> Iterator[list[str]]:
    """Measure the network alone, and a whole prediction: panoptic, instances and semantic."""
    for dtype, mode, compiled, cast in settings(device):
        model = build(device, compiled)[0].eval()
        for batch in (1, 8):
            images = torch.randn(batch, 3, sizes.side, sizes.side, device=device)
            yield _model_row(
                device, f"R50 network, {mode}", batch, dtype, partial(_network, model, images, cast)
            )
        image = torch.randint(256, (3, sizes.side, sizes.side), device=device).float()
        run = partial(_predict, model, [{"image": image}], cast)
        yield _model_row(device, f"R50 prediction, {mode}", 1, dtype, run)


def training_rows(device: torch.device, sizes: Sizes) -> Iterator[list[str]]:
    """Measure forward, losses, backward and the optimizer's step."""
    for dtype, mode, compiled, cast in settings(device):
        model, cfg = build(device, compiled)
        optimizer = build_optimizer(cfg, model.train())
        for batch in (1, 8):
            run = partial(_step, model, optimizer, [_example(device, sizes)] * batch, cast)
            yield _model_row(device, f"R50 training step, {mode}", batch, dtype, run)


def _model_row(
    device: torch.device, what: str, batch: int, dtype: str, run: Callable[[], object]
) -> list[str]:
    runs = 10
    try:
        run()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        median = seconds(device, run, runs)
        peak = torch.cuda.max_memory_allocated() / MB if device.type == "cuda" else float("nan")
    except Exception as error:  # the other rows still count
        return [what, str(batch), dtype, f"{type(error).__name__}: {str(error).splitlines()[0]}", "", "", ""]
    return [what, str(batch), dtype, f"{1e3 * median:.1f} ms", "", f"{peak:.0f} MB", ""]


@torch.no_grad()
def _network(model: Any, images: Tensor, cast: Any) -> object:
    with cast:
        predictions = model.network(images)
        return predictions.layers[-1].class_logits, predictions.mask_logits()


def _predict(model: Any, inputs: list[dict[str, Any]], cast: Any) -> object:
    with cast:
        return model(inputs)


def _step(model: Any, optimizer: torch.optim.Optimizer, inputs: list[dict[str, Any]], cast: Any) -> None:
    with cast:
        loss = sum(model(inputs).values())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def _example(device: torch.device, sizes: Sizes) -> dict[str, Any]:
    """Return an image of noise with boxes as targets."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(sizes.targets, sizes.side, sizes.side, dtype=torch.bool)
    for mask in masks:
        top, left, height, width = torch.randint(
            sizes.side // 8, sizes.side // 2, (4,), generator=generator
        ).tolist()
        mask[top : top + height, left : left + width] = True
    targets = Instances(
        (sizes.side, sizes.side),
        gt_classes=torch.randint(133, (sizes.targets,), generator=generator).to(device),
        gt_masks=masks.to(device),
    )
    image = torch.randint(256, (3, sizes.side, sizes.side), generator=generator).float()
    return {"image": image.to(device), "instances": targets}


if __name__ == "__main__":
    sys.exit(main())
