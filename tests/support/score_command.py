"""The command `mask2former score` as tests run it."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout

import numpy as np

from mask2former.tools.score import main


def score(*arguments):
    """Return the metrics that the command prints; NaN for null."""
    with redirect_stdout(io.StringIO()) as out:
        assert main([*map(str, arguments), "--json"]) == 0
    return {name: np.nan if value is None else value for name, value in json.loads(out.getvalue()).items()}


def score_error(*arguments):
    """Return the line that the command prints for bad input."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as error:
        assert main([*map(str, arguments)]) == 2
    (line,) = [line for line in error.getvalue().splitlines() if line.startswith("error: ")]
    assert error.getvalue().endswith(line + "\n") and not out.getvalue()
    return line
