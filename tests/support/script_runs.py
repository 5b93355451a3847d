"""Run the scripts of datasets/ in this process, and hash the files they wrote."""

import hashlib
import importlib.util
import sys
from pathlib import Path

DATASETS = Path(__file__).parents[2] / "datasets"
HEAD = 128  # bytes at the start of MATLAB files that hold the time of writing


def load(name):
    """Import a script as a module that worker processes find by name."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, DATASETS / f"{name}.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def run(name, root, *options, workers=1):
    load(name).main(["--root", str(root), "--workers", str(workers), *options])


def contents(root):
    """Return a hash of each file below `root`, by its path."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    skipped = {path: HEAD if path.suffix == ".mat" else 0 for path in files}
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()[skipped[path] :]).hexdigest()
        for path in files
    }
