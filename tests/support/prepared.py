"""Drawn trees of the published datasets, made ready by the scripts of datasets/."""

import importlib.util
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "datasets"


def prepare(script: str, root: Path) -> None:
    """Run `python datasets/{script} --root {root}` in this process."""
    spec = importlib.util.spec_from_file_location(script.removesuffix(".py"), SCRIPTS / script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(["--root", str(root), "--workers", "1"])
