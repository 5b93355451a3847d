"""The arrows of docs/architecture.md: which room may import which, and that the core stands on its own."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mask2former"
FILES = sorted(PACKAGE.rglob("*.py"))
GROUND = {"structures", "registry", "distributed", "version", "storage", "shared_records"}
IMAGES = {"label_files", "image_io"}
MAY_IMPORT = {
    **{name: {"structures"} for name in sorted(GROUND)},
    **{name: {"storage"} for name in sorted(IMAGES)},
    "shared_records": {"distributed"},
    "config": {"config_keys", "config_yaml"},
    "config_keys": set(),
    "config_yaml": set(),
    "ops": GROUND,
    "doctor": {"version", "ops"},
    "modeling": GROUND | {"ops"},
    "data": GROUND | IMAGES,
    "evaluation": GROUND | IMAGES,
    "visualize": GROUND,
    "zoo": set(),
}
UPPER = {"engine", "result", "predictor", "tools", "detectron2_host", "__init__"}  # what stands on those
HOST = "detectron2_host"  # the one room that may import Detectron2
FOREIGN = {"detectron2", "torchvision", "timm", "transformers"}


def imported(path):
    """Dotted names of all that a file imports, at any depth of the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_the_arrows(name):
    files = [path for path in FILES if room(path) == name]
    assert files
    for path in files:
        ours = {dotted.split(".")[1] for dotted in imported(path) if dotted.startswith("mask2former.")}
        assert ours <= MAY_IMPORT[name] | {name}, path


def test_every_room_has_its_place():
    assert {room(path) for path in FILES} == MAY_IMPORT.keys() | UPPER


def test_engine_knows_none_of_the_rooms_above_it():
    for path in (path for path in FILES if room(path) == "engine"):
        ours = {dotted.split(".")[1] for dotted in imported(path) if dotted.startswith("mask2former.")}
        assert not ours & (UPPER - {"engine"}), path


def test_the_core_imports_no_other_framework():
    found = {
        (path.name, dotted)
        for path in FILES
        for dotted in imported(path)
        if dotted.split(".")[0] in FOREIGN - ({"detectron2"} if room(path) == HOST else set())
    }
    assert not found


def test_the_host_is_imported_on_request_only():
    importing = {
        node
        for path in FILES
        if room(path) != HOST
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, (ast.Import, ast.ImportFrom)) and HOST in ast.unparse(node)
    }
    assert not importing
