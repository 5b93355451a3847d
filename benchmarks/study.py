"""Train the rows of a table, each with several seeds, and print their means and spreads.

    nice python benchmarks/study.py STUDY [--steps N] [--seeds N] [--only ROW ...] [--jobs N]
        [--folder FOLDER] [--results FILE]

STUDY is a file of `benchmarks/studies/`: a config, the steps of a run, the metrics, and as rows of the table
the keys that each changes. Each run is `mask2former train` in a process of its own, with one thread; `--jobs`
of them run at a time. A finished run leaves a JSON file in the folder and is not repeated; an interrupted one
continues from its last checkpoint. So the command can run in the background, be stopped at any time (Ctrl-C
or SIGTERM) and started again. All rows of a seed run before those of the next seed.

`MB` is the peak of a run's memory. Times of runs beside other work mean little: study_costs.py measures them.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from measure import machine

from mask2former.data.datasets.drawn import DrawnDataset
from mask2former.data.datasets.scenes import SCENES
from mask2former.data.datasets.shapes import SHAPES
from mask2former.engine.metrics_log import METRICS_FILE, read_metrics
from mask2former.tools.flags import whole_number
from mask2former.tools.paper.tables import study_table
from mask2former.utils.atomic_files import atomic_write
from mask2former.version import commit

STUDIES = Path(__file__).parent / "studies"
DATASETS = {dataset.name: dataset for dataset in (SHAPES, SCENES)}
OPTIONS: dict[str, object] = {  # of all runs
    "MODEL.DEVICE": "cpu",
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.CHECKPOINT_PERIOD": 100,
}
PAUSE = 0.2  # seconds between looks at the processes
IMAGES: dict[str, int] | None = None  # of each split; None: the dataset's own
CHECKPOINT = ("model_final.pth", "last_checkpoint")  # what an evaluation needs of a finished run

SUMMARIES = {"MB": ("memory_mb", max)}  # over the steps of a run
COSTS = ("s/step", "time")  # of a row, by study_costs.py
Row = dict[str, Any]
Process = subprocess.Popen[bytes]


class Run(NamedTuple):
    """A row of the study with a seed."""

    row: Row
    seed: int

    @property
    def name(self) -> str:
        """Return the name of its files."""
        return f"{self.row['name']}_seed{self.seed}"

    @property
    def trained(self) -> str | None:
        """Return the name of the run whose model this one evaluates, if it does not train."""
        return f"{self.row['evaluate']}_seed{self.seed}" if "evaluate" in self.row else None

    def is_ready(self, folder: Path) -> bool:
        """Return True if the run can start: what it evaluates is trained."""
        return self.trained is None or (folder / f"{self.trained}.json").exists()


class Study(NamedTuple):
    """The content of a file of `benchmarks/studies/`.

    `metrics` has names in metrics.json by column; a run without one has no figure there. A row has a `name`,
    a `title`, and may have `labels`, which are further cells by column, a `config` in place of the study's,
    and `options`, the keys that it changes. A row with `evaluate`, the name of another row, does not train,
    but evaluates that row's models.
    """

    dataset: str
    config: str
    steps: int
    seeds: int
    metrics: dict[str, str]
    rows: list[Row]
    options: Row = {}  # noqa: RUF012  of all rows; never changed

    @property
    def drawn(self) -> DrawnDataset:
        """Return the dataset."""
        return DATASETS[self.dataset]


def read_study(name: str) -> Study:
    """Return the study of that name."""
    return Study(**yaml.safe_load((STUDIES / f"{name}.yaml").read_text(encoding="utf-8")))


def command(study: Study, run: Run, steps: int, output: Path) -> list[str]:
    """Return the command that trains and evaluates a run, or continues to."""
    options: Row = {
        **OPTIONS,
        "SOLVER.MAX_ITER": steps,
        **study.options,
        **run.row.get("options", {}),
        "SEED": run.seed,
        "OUTPUT_DIR": output,
    }
    pairs = [str(word) for pair in options.items() for word in pair]
    config = run.row.get("config", study.config)
    return [sys.executable, "-m", "mask2former", "train", "--config-file", config, "--resume", *pairs]


def figures(study: Study, records: list[Row]) -> dict[str, float]:
    """Return the metrics of a finished run by column, from its records in metrics.json."""
    results = records[-1]
    measured = {column: round(results[name], 2) for column, name in study.metrics.items() if name in results}
    for column, (name, summarize) in SUMMARIES.items():
        if values := [record[name] for record in records if name in record]:
            measured[column] = round(summarize(values), 3)
    return measured


def start(study: Study, run: Run, steps: int, folder: Path) -> Process:
    """Start the process of a run, with one thread; its output goes to a file in `folder`."""
    output_dir = folder / run.name
    if trained := run.trained:
        output_dir.mkdir(exist_ok=True)
        for name in CHECKPOINT:
            shutil.copy(folder / trained / name, output_dir)
    argv = command(study, run, steps, output_dir)
    with (folder / f"{run.name}.out").open("wb") as output:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT, env=environment)


def finish(study: Study, run: Run, code: int, folder: Path) -> None:
    """Write the row of a run whose process ended to `folder`.

    Raises:
        SystemExit: the process failed.
    """
    if code:
        output = folder / f"{run.name}.out"
        sys.exit(f"{run.name} ended with {code}; see {output}\n{output.read_text(errors='replace')[-2000:]}")
    measured = figures(study, read_metrics(folder / run.name / METRICS_FILE))
    print(f"{run.name}: {measured}", flush=True)
    row = {"name": run.row["name"], "seed": run.seed, **measured, "commit": commit(), "machine": machine()}
    with atomic_write(folder / f"{run.name}.json") as file:
        file.write(json.dumps(row).encode())


def missing_runs(study: Study, names: Sequence[str], seeds: int, folder: Path) -> Iterator[Run]:
    """Yield the runs that have no file in `folder`, all rows of a seed before the next seed."""
    for seed in range(1, seeds + 1):
        for row in study.rows:
            run = Run(row, seed)
            if row["name"] in names and not (folder / f"{run.name}.json").exists():
                yield run


def train_all(study: Study, runs: Iterable[Run], steps: int, folder: Path, jobs: int) -> None:
    """Train runs, `jobs` at a time. After a failure or an interruption all processes are ended.

    Raises:
        SystemExit: a process failed, or the models that are to be evaluated are not trained.
    """
    folder.mkdir(parents=True, exist_ok=True)
    waiting = list(runs)
    running: dict[str, tuple[Run, Process]] = {}
    try:
        while waiting or running:
            ready = [run for run in waiting if run.is_ready(folder)]
            if not ready and not running:
                sys.exit(f"{waiting[0].name} evaluates {waiting[0].trained}, which is not trained")
            for run in ready[: jobs - len(running)]:
                waiting.remove(run)
                running[run.name] = run, start(study, run, steps, folder)
            for name, (run, process) in list(running.items()):
                if (code := process.poll()) is not None:
                    del running[name]
                    finish(study, run, code, folder)
            time.sleep(PAUSE)
    finally:
        for _, process in running.values():
            process.terminate()  # it saves a checkpoint
        for _, process in running.values():
            process.wait()


def collect(study: Study, steps: int, folder: Path) -> Row:
    """Return the figures of all runs in `folder`, by row and in order of the seeds."""
    found = [json.loads(path.read_text()) for path in folder.glob("*_seed*.json")]
    found.sort(key=lambda row: row["seed"])
    columns = [*study.metrics, *SUMMARIES]
    rows = []
    for row in study.rows:
        own = [run for run in found if run["name"] == row["name"]]
        if own:
            measured = [key for key in columns if all(key in run for run in own)]
            rows.append({**row, **{key: [run[key] for run in own] for key in ("seed", *measured)}})
    facts = {key: "; ".join(sorted({run[key] for run in found})) for key in ("commit", "machine")}
    return {"config": study.config, "steps": steps, "columns": columns, **facts, "rows": rows}


def with_costs(results: Row, earlier: Row) -> Row:
    """Return the results with the costs that study_costs.py has added to `earlier` ones of its rows."""
    measured = {row["name"]: {key: row[key] for key in COSTS if key in row} for row in earlier["rows"]}
    rows = [row | measured.get(row["name"], {}) for row in results["rows"]]
    costs = [key for key in COSTS if any(key in row for row in rows)]
    return {**results, "columns": [*results["columns"], *costs], "rows": rows}


def chosen_rows(parser: argparse.ArgumentParser, study: str, names: Sequence[str] | None) -> Sequence[str]:
    """Return the names of rows that a user gave, or of all; an unknown one ends the program."""
    known = [row["name"] for row in read_study(study).rows]
    if unknown := set(names or ()) - set(known):
        parser.error(f"no row {', '.join(sorted(unknown))} in {study}; it has {', '.join(known)}")
    return names or known


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag, number = parser.add_argument, whole_number(1)
    flag("study", choices=sorted(path.stem for path in STUDIES.glob("*.yaml")))
    flag("--steps", type=number, help="training steps of a run (default: the study's)")
    flag("--seeds", type=number, help="runs of each row (default: the study's)")
    flag("--only", nargs="+", metavar="ROW", help="names of rows (default: all)")
    flag("--jobs", type=number, default=2, help="runs at a time (default: %(default)s)")
    flag("--folder", type=Path, default=Path("output/studies"), help="of all runs (default: %(default)s)")
    flag("--results", type=Path, metavar="FILE", help="also write the figures to this JSON file")
    args = parser.parse_args(argv)
    args.only = chosen_rows(parser, args.study, args.only)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the dataset, run what is missing, print and write the results; return 1 if that was stopped."""
    args = parse_arguments(argv)
    study = read_study(args.study)
    steps, seeds = args.steps or study.steps, args.seeds or study.seeds
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop the training processes, too
    study.drawn.write(args.folder, IMAGES)
    os.environ["DETECTRON2_DATASETS"] = str(args.folder.resolve())
    folder = args.folder / f"{args.study}_{steps}_steps"
    stopped = False
    try:
        train_all(study, missing_runs(study, args.only, seeds, folder), steps, folder, args.jobs)
    except KeyboardInterrupt:
        print("stopped; the same command continues")
        stopped = True
    results = collect(study, steps, folder)
    if args.results:
        if args.results.exists():
            results = with_costs(results, json.loads(args.results.read_text()))
        args.results.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\n{study_table(results)}")
    return int(stopped)


if __name__ == "__main__":
    sys.exit(main())
