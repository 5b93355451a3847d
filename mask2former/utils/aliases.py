"""Former names of commands, kept for one release."""

import importlib
import sys
from collections.abc import Sequence


def run_alias(old: str, new: str, argv: Sequence[str] | None = None) -> int:
    """Run `mask2former NEW` under its former name, after one line on stderr that says so.

    Args:
        old: the command as users typed it, such as "mask2former-demo".
        new: the words after `mask2former`, such as "demo" or "score panoptic"; the first one names the module
            of `mask2former.tools` that is run, with "_" for "-".
        argv: the arguments; those of the process by default.

    Returns:
        The exit code.
    """
    sys.stderr.write(f"{old} is now `mask2former {new}`; the old name goes in the next release\n")
    command, *words = new.split()
    # By name, as utils is below tools
    module = importlib.import_module(f"mask2former.tools.{command.replace('-', '_')}")
    code: int = module.main([*words, *(sys.argv[1:] if argv is None else argv)])
    return code
