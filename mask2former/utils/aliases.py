"""Former names of commands, kept for one release."""

import sys
from collections.abc import Callable, Sequence

from mask2former.utils.output import tolerant_output


@tolerant_output()
def run_alias(
    old: str, new: str, main: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None
) -> int:
    """Run a command under its former name, after one line on stderr that gives the new one.

    Args:
        old: the command as users typed it, such as "mask2former-demo".
        new: the words after `mask2former`, such as "predict" or "score panoptic".
        main: the module of the first word; it gets the other words, then `argv`.
        argv: the arguments; those of the process by default.

    Returns:
        The exit code.
    """
    sys.stderr.write(f"{old} is now `mask2former {new}`; the old name goes in the next release\n")
    return main([*new.split()[1:], *(sys.argv[1:] if argv is None else argv)])
