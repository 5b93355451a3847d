"""Print a config: every key that differs from its default, with its value and the file that set it."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from mask2former.config import CfgNode, get_cfg, load_config
from mask2former.config.node import CONFIG_ROOTS
from mask2former.config.yaml_files import flatten
from mask2former.tools.arguments.config import parse_arguments
from mask2former.utils.output import print_error, tolerant_output


def config_table(cfg: CfgNode, *, all_keys: bool = False) -> str:
    """Return a line for each key: its name, its value, and what set it."""
    defaults = flatten(get_cfg())
    rows = [
        (key, repr(value), shortened(cfg.source(key)))
        for key, value in flatten(cfg).items()
        if all_keys or value != defaults.get(key)
    ]
    return tabulate(rows, tablefmt="plain", disable_numparse=True)


def shortened(source: str) -> str:
    """Return the path of a config file of the project relative to `configs/`, any other source as it is."""
    for root in CONFIG_ROOTS:
        if Path(source).is_relative_to(root.resolve()):
            return Path(source).relative_to(root.resolve()).as_posix()
    return source


@tolerant_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Return exit code 0: printed; 1: the config is wrong; 2: wrong flags."""
    return run(parse_arguments(argv))


def run(args: argparse.Namespace) -> int:
    """Print the config that the flags name; return 0, or 1 if it is wrong."""
    try:
        print(config_table(load_config(args.file, args.opts), all_keys=args.all))
    except (ValueError, OSError) as error:
        print_error(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
