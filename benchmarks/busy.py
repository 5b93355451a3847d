"""Measure a small training run alone and beside another one, for docs/benchmarks.md.

    python benchmarks/busy.py [--rounds N] [--steps N] [--cgroup FOLDER]

Each run is a process of `mask2former train` on the drawn dataset. "Always spinning" has libgomp's own way of
waiting, and is what the run alone must not be slower than; the others wait as `mask2former doctor` says.
Figures are the mean seconds of a run's steps, and of these the median over rounds and processes. The machine
must do nothing else.

With --cgroup, the processes move into that cgroup, which can have a CPU quota:

    mkdir /sys/fs/cgroup/small && echo "150000 100000" > /sys/fs/cgroup/small/cpu.max
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import NamedTuple

from measure import machine, ratio, table

from mask2former.data.datasets.shapes import write_shapes

CONFIG = "shapes/panoptic-segmentation/maskformer2_R18_bs8_shapes.yaml"
IMAGES = {"train": 64, "val": 1}
OPTIONS: dict[str, object] = {"MODEL.DEVICE": "cpu", "DATASETS.TEST": "()", "SEED": 1}
ROUNDS, STEPS = 3, 20
AIM = 1.3  # times twice the time of one run
ENTER = 'echo $$ > "$0/cgroup.procs" && exec "$@"'


class Side(NamedTuple):
    """Runs at once, and the environment variables that they get."""

    runs: int
    environment: dict[str, str]


SIDES = {
    "alone, always spinning": Side(1, {"GOMP_SPINCOUNT": "300000"}),  # libgomp's default
    "alone": Side(1, {}),
    "two at once": Side(2, {}),
}


def step_seconds(side: Side, steps: int, cgroup: Path | None) -> list[float]:
    """Return the mean seconds of a step of each of a side's runs.

    Raises:
        RuntimeError: a run failed.
    """
    enter = ["sh", "-c", ENTER, str(cgroup)] if cgroup else []
    command = [*enter, sys.executable, "-m", "mask2former", "train", "--config-file", CONFIG]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, str(number)) for number in range(side.runs)]
        processes = []
        for output in outputs:
            options = OPTIONS | {"OUTPUT_DIR": output, "SOLVER.MAX_ITER": steps}
            keys = [str(word) for pair in options.items() for word in pair]
            environment = os.environ | side.environment
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            processes.append(subprocess.Popen([*command, *keys], env=environment, **quiet))
        if any([process.wait() for process in processes]):
            raise RuntimeError(f"a run failed; try {' '.join([*command, *keys])}")
        rows = [(output / "metrics.json").read_text(encoding="utf-8").splitlines()[-1] for output in outputs]
    return [json.loads(row)["time"] for row in rows]


def report(rounds: int, steps: int, cgroup: Path | None) -> str:
    """Run the sides in turns; return the table, and how far the last one is from the aim."""
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    for _ in range(rounds):
        for name, side in SIDES.items():
            seconds[name] += step_seconds(side, steps, cgroup)
    medians = {name: median(found) for name, found in seconds.items()}
    rows = [
        [
            name,
            f"{found:.3f} s",
            ratio(found, medians["alone"]),
            " ".join(f"{one:.2f}" for one in seconds[name]),
        ]
        for name, found in medians.items()
    ]
    limit = 2 * AIM * medians["alone"]
    aim = f"The aim for two at once is {limit:.3f} s, {AIM} times twice the time of one."
    return f"{table([['runs', 'step', 'of one alone', 'each run'], *rows])}\n\n{aim}"


def main() -> None:
    """Write the images, run the sides and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how often each side runs")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of a run")
    parser.add_argument("--cgroup", type=Path, help="folder of the cgroup that the runs move into")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_shapes(Path(folder), IMAGES)
        os.environ["DETECTRON2_DATASETS"] = folder
        print(machine(), end="\n\n")
        print(report(args.rounds, args.steps, args.cgroup))


if __name__ == "__main__":
    main()
