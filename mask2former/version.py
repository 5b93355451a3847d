"""Version of the package, in a module that imports nothing of it, for the build."""

import subprocess
from pathlib import Path

__version__ = "0.1.0"


def commit() -> str:
    """Return the commit of the clone that this runs from, with "+" if modified; "none" outside a clone."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return "none"
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            cwd=root, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return described.stdout.strip()
