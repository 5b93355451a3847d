"""Compare the time of a training step of a study's rows, on one thread.

    python benchmarks/study_costs.py STUDY [--rounds N] [--only ROW ...] [--folder FOLDER] [--results FILE]

In each round every row trains one step, in an order that rotates; the first round is not counted. Loading is
part of a step. Processor time is measured, since other work on the machine changes it less than the clock,
and printed as a ratio to the first row: of a step's median, and of its fastest. The medians are added to the
results of study.py in FILE.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from measure import machine
from study import COSTS, OPTIONS, STUDIES, Row, Study, chosen_rows, read_study

from mask2former.config import load_config
from mask2former.data.loader import build_train_loader
from mask2former.data.records import Datasets
from mask2former.engine.build import construct_model
from mask2former.engine.setup.resolve import resolve_config
from mask2former.engine.train import build_trainer
from mask2former.tools.flags import whole_number


def training_step(study: Study, row: Row) -> Callable[[], None]:
    """Return the function that trains the row's model for one step, at the beginning of training."""
    options = {**OPTIONS, **study.options, **row.get("options", {}), "SEED": 1}
    pairs = [str(word) for pair in options.items() for word in pair]
    datasets = Datasets()
    cfg = resolve_config(load_config(row.get("config", study.config), pairs), datasets)
    torch.manual_seed(1)
    trainer = build_trainer(cfg, construct_model(cfg))
    batches = iter(build_train_loader(cfg, 0, datasets=datasets))
    trainer.max_iter = 0

    def step() -> None:
        trainer.max_iter += 1
        trainer.train(batches)

    return step


def measure_in_rotation(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Return the processor seconds of each step in each round but the first."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            started = time.process_time()
            steps[name]()
            if number:
                seconds[name].append(time.process_time() - started)
    return seconds


def add_to_results(file: Path, seconds: dict[str, list[float]], base: str) -> None:
    """Add the median seconds of each row, and their ratio to the row `base`, to results of study.py."""
    results = json.loads(file.read_text(encoding="utf-8"))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for row in results["rows"]:
        if median := medians.get(row["name"]):
            row |= zip(COSTS, ([round(median, 3)], [round(median / medians[base], 3)]), strict=True)
    results["columns"] = [*dict.fromkeys([*results["columns"], *COSTS])]
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the dataset, measure the rows that train, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag = parser.add_argument
    flag("study", choices=sorted(path.stem for path in STUDIES.glob("*.yaml")))
    flag("--rounds", type=whole_number(1), default=20, help="steps of each row (default: %(default)s)")
    flag("--only", nargs="+", metavar="ROW", help="names of rows (default: all that train)")
    flag("--folder", type=Path, default=Path("output/studies"), help="of the data (default: %(default)s)")
    flag("--results", type=Path, metavar="FILE", help="add the times to this file of study.py")
    args = parser.parse_args(argv)
    study = read_study(args.study)
    study.drawn.write(args.folder)
    os.environ["DETECTRON2_DATASETS"] = str(args.folder.resolve())
    torch.set_num_threads(1)
    names = chosen_rows(parser, args.study, args.only)
    rows = [row for row in study.rows if row["name"] in names and "evaluate" not in row]
    if not rows:
        parser.error(f"{', '.join(names)}: no row that trains")
    seconds = measure_in_rotation({row["name"]: training_step(study, row) for row in rows}, args.rounds)
    base = seconds[rows[0]["name"]]
    if args.results:
        add_to_results(args.results, seconds, rows[0]["name"])
    print(f"{machine()}; {args.rounds} steps\n")
    print("| row | ms | ratio | ratio of fastest |\n|---|---|---|---|")
    for name, values in seconds.items():
        median, fastest = statistics.median(values), min(values)
        ratios = f"{median / statistics.median(base):.2f} | {fastest / min(base):.2f}"
        print(f"| {name} | {1000 * median:.0f} | {ratios} |")


if __name__ == "__main__":
    sys.exit(main())
