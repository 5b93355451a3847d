"""The command `mask2former`: run one of its subcommands.

Each is a module of `mask2former.tools`, and its flags are one of `mask2former.tools.arguments`.
"""

import difflib
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module

from mask2former.utils.aliases import run_alias
from mask2former.utils.output import print_error, tolerant_output
from mask2former.version import __version__

COMMANDS = {
    "train": "train a model, on one or more devices",
    "predict": "segment images with a trained model and draw the results",
    "web": "serve a page that shows what a trained model finds in images",
    "evaluate": "evaluate a trained model on a dataset",
    "score": "score saved predictions against ground truth",
    "analyze": "count and time the parts of a model",
    "check-dataset": "check that a dataset can be trained on, and summarize it",
    "doctor": "report what is installed on this machine, for an issue",
    "config": "print a config, and which file set each key",
    "export": "write a trained model as a file of ONNX, OpenVINO or torch.export",
    "convert": "convert between a checkpoint and a folder of transformers",
    "zoo": "list the published models",
}  # name -> summary; the module has "_" for "-"


def usage() -> str:
    """Return the text of `mask2former --help`."""
    commands = "\n".join(f"  {name:<15}{summary}" for name, summary in COMMANDS.items())
    return (
        "usage: mask2former [--help] [--version] COMMAND ...\n\n"
        f"Semantic, instance and panoptic segmentation with Mask2Former.\n\ncommands:\n{commands}\n\n"
        "`mask2former COMMAND --help` describes the flags of a command."
    )


@tolerant_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; return its exit code, or 2 if there is no such subcommand."""
    command, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help"):
        print(usage())
    elif command == "--version":
        print(f"mask2former {__version__}")
    elif command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        advice = f"did you mean `mask2former {near[0]}`?" if near else "see `mask2former --help`"
        print_error(f"mask2former has no command '{command}'; {advice}")
        return 2
    else:
        return _run(command, arguments)
    return 0


def _run(command: str, argv: Sequence[str]) -> int:
    """Parse the flags, then import what the command works with: help and wrong flags need no torch."""
    name = command.replace("-", "_")
    args = import_module(f"mask2former.tools.arguments.{name}").parse_arguments(argv)
    code: int = import_module(f"mask2former.tools.{name}").run(args)
    return code


# Former names, which pyproject.toml installs
train_alias = partial(run_alias, "mask2former-train", "train", partial(_run, "train"))
demo_alias = partial(run_alias, "mask2former-demo", "predict", partial(_run, "predict"))
