"""Does the paper's ablation show on the drawn dataset? The small model, each time with one component less.

    OMP_NUM_THREADS=1 nice python benchmarks/ablations.py [--steps N] [--seeds N] [--only NAME ...]
        [--folder FOLDER] [--results FILE]

Each run is `mask2former train` in a process of its own. A finished run leaves a JSON file in the folder and
is not repeated; an interrupted one continues from its last checkpoint. So the command can run in the
background, be stopped at any time (Ctrl-C or SIGTERM) and started again. All variants of a seed run before
those of the next seed.

The configs of these variants at full size are in `configs/ablations/`. The table in docs/tables.md is made of
the figures in mask2former/tools/paper/ablations.json, which is a file of `--results`.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from measure import machine

from mask2former.data.datasets.shapes import write_shapes
from mask2former.engine.metrics_log import METRICS_FILE, read_metrics
from mask2former.tools.flags import whole_number
from mask2former.tools.paper.tables import ablation_table
from mask2former.utils.atomic_files import atomic_write
from mask2former.version import commit

CONFIG = "shapes/panoptic-segmentation/maskformer2_R18_bs8_shapes.yaml"
STEPS, SEEDS = 500, 3
OPTIONS: dict[str, object] = {  # of all runs
    "MODEL.DEVICE": "cpu",
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.CHECKPOINT_PERIOD": 100,
}
IMAGES: dict[str, int] | None = None  # of each split; None: the dataset's own
METRICS = {"PQ": "panoptic_seg/PQ", "AP": "segm/AP", "mIoU": "sem_seg/mIoU"}  # names in metrics.json
Row = dict[str, Any]


class Variant(NamedTuple):
    """A row of the table: its title, the paper's table, and the keys that differ from the default model."""

    title: str
    paper: str
    options: dict[str, object]


DECODER = "MODEL.MASK_FORMER.DECODER"
VARIANTS = {
    "baseline": Variant("Mask2Former", "4a", {}),
    "cross_attention": Variant("- masked attention", "4a, 4c", {f"{DECODER}.ATTENTION": "cross"}),
    "stride32": Variant("- high-resolution features", "4a, 4d", {f"{DECODER}.MEMORY_STRIDE": 32}),
    "zero_queries": Variant("- learnable query features", "4b", {f"{DECODER}.LEARNED_QUERIES": False}),
    "fpn": Variant(
        "- MSDeformAttn (FPN)",
        "4e",
        {"MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "TransformerEncoderPixelDecoder"},
    ),
    "match_masks_loss_masks": Variant(
        "- points (matching and loss on masks)",
        "5",
        {"MODEL.MASK_FORMER.MATCH_ON": "masks", "MODEL.MASK_FORMER.LOSS_ON": "masks"},
    ),
}


def command(name: str, seed: int, steps: int, output: Path) -> list[str]:
    """Return the command that trains and evaluates a variant, or continues to."""
    options: dict[str, object] = {
        **OPTIONS,
        **VARIANTS[name].options,
        "SEED": seed,
        "SOLVER.MAX_ITER": steps,
        "OUTPUT_DIR": output,
    }
    pairs = [str(word) for pair in options.items() for word in pair]
    return [sys.executable, "-m", "mask2former", "train", "--config-file", CONFIG, "--resume", *pairs]


def run(name: str, seed: int, steps: int, output: Path) -> Row:
    """Train and evaluate a variant in a process of its own; return its row.

    Raises:
        SystemExit: the process failed.
    """
    start = time.monotonic()
    done = subprocess.run(command(name, seed, steps, output), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(
            f"{output.name} ended with {done.returncode}; see {output / 'log.txt'}\n{done.stderr[-2000:]}"
        )
    seconds = round(time.monotonic() - start)
    results = read_metrics(output / METRICS_FILE)[-1]
    figures = {metric: round(results[key], 2) for metric, key in METRICS.items()}
    print(f"{output.name}: {figures}, {seconds} s", flush=True)
    return {"variant": name, "seed": seed, **figures, "commit": commit(), "machine": machine()}


def run_all(names: Sequence[str], seeds: int, steps: int, folder: Path) -> None:
    """Run what has no row yet, and write its row to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(1, seeds + 1):
        for name in names:
            output = folder / f"{name}_seed{seed}"
            row_file = output.with_suffix(".json")
            if not row_file.exists():
                row = run(name, seed, steps, output)
                with atomic_write(row_file) as file:
                    file.write(json.dumps(row).encode())


def collect(steps: int, folder: Path) -> Row:
    """Return the figures of all rows in `folder`, by variant and in order of the seeds."""
    rows = [json.loads(path.read_text()) for path in folder.glob("*_seed*.json")]
    rows.sort(key=lambda row: row["seed"])
    variants = []
    for name, (title, paper, options) in VARIANTS.items():
        own = [row for row in rows if row["variant"] == name]
        figures = {key: [row[key] for row in own] for key in ("seed", *METRICS)}
        if own:
            variants.append({"name": name, "title": title, "paper": paper, "options": options, **figures})
    facts = {key: "; ".join(sorted({row[key] for row in rows})) for key in ("commit", "machine")}
    return {"config": CONFIG, "steps": steps, **facts, "variants": variants}


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the dataset, run what is missing, print and write the results; return 1 if that was stopped."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag, number = parser.add_argument, whole_number(1)
    flag("--steps", type=number, default=STEPS, help="training steps of a run (default: %(default)s)")
    flag("--seeds", type=number, default=SEEDS, help="runs of each variant (default: %(default)s)")
    flag(
        "--only",
        nargs="+",
        choices=VARIANTS,
        default=list(VARIANTS),
        metavar="NAME",
        help=", ".join(VARIANTS),
    )
    flag("--folder", type=Path, default=Path("output/ablations"), help="of all runs (default: %(default)s)")
    flag("--results", type=Path, metavar="FILE", help="also write the figures to this JSON file")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop the training process, too
    write_shapes(args.folder, IMAGES)
    os.environ["DETECTRON2_DATASETS"] = str(args.folder.resolve())
    runs = args.folder / f"{args.steps}_steps"
    stopped = False
    try:
        run_all(args.only, args.seeds, args.steps, runs)
    except KeyboardInterrupt:
        print("stopped; the same command continues")
        stopped = True
    results = collect(args.steps, runs)
    if args.results:
        args.results.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\n{ablation_table(results)}")
    return int(stopped)


if __name__ == "__main__":
    sys.exit(main())
