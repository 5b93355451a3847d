"""Flags that say how many processes to start, and where."""

import argparse

TIMEOUT = 3600  # seconds; the other ranks wait while rank 0 computes metrics


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add Detectron2's launch flags, and --num-processes, --max-restarts and --timeout."""
    flag = parser.add_argument
    flag("--num-gpus", type=int, metavar="N", help="GPUs on this machine (default: 1 if there is one)")
    flag("--num-processes", type=int, metavar="N", help="processes on the CPU, instead of GPUs")
    flag("--num-machines", type=int, default=1, metavar="N", help="machines that work together")
    flag("--machine-rank", type=int, default=0, metavar="R", help="number of this machine, from 0")
    url_help = "with several machines: tcp://HOST:PORT of the first"
    flag("--dist-url", default="auto", metavar="URL", help=url_help)
    restarts_help = "when a process fails, restart all from the last checkpoint, up to N times"
    flag("--max-restarts", type=int, default=0, metavar="N", help=restarts_help)
    timeout_help = f"how long processes wait for each other, also in evaluation (default: {TIMEOUT})"
    flag("--timeout", type=float, default=TIMEOUT, metavar="SECONDS", help=timeout_help)
