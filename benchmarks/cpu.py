"""Run all comparisons on a CPU, or those named: one Markdown section each.

    python benchmarks/cpu.py [inference training postprocessing operator mapper metrics losses]

Each section is a module of this folder, which says what it compares.
"""

from __future__ import annotations

import argparse
import importlib

from measure import machine

SECTIONS = {
    "inference": "inference",
    "training": "cpu_training",
    "postprocessing": "postprocessing",
    "operator": "deformable_attention",
    "mapper": "mapper",
    "metrics": "metrics",
    "losses": "losses",
}


def main() -> None:
    """Print the machine, then each section when it is done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", metavar="section", help=f"of {', '.join(SECTIONS)}")
    names = parser.parse_args().sections or list(SECTIONS)
    if unknown := set(names) - SECTIONS.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    print(machine())
    for name in names:
        print(f"\n## {name.capitalize()}\n\n{importlib.import_module(SECTIONS[name]).report()}", flush=True)


if __name__ == "__main__":
    main()
