"""The import rules of docs/architecture.md: layers, circles, chains, folders, foreign frameworks."""

import ast
import functools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mask2former"
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {
    ".".join(("mask2former", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in FILES
}
# What a folder or top-level file may import of the project, besides itself
LAYERS: dict[str, set[str]] = {
    "version": set(),
    "options": set(),
    "structures": set(),
    "config": set(),
    "ops": {"structures"},
    "utils": {"structures", "version"},
    "drawing": {"structures", "utils"},
    "modeling": {"structures", "options", "ops", "utils"},
    "data": {"structures", "config", "utils", "drawing"},
    "evaluation": {"structures", "options", "config", "utils"},
    "weights": {"structures", "config", "utils"},
}
LAYERS["tiling"] = {"structures", "config", "utils", "modeling", "data"}
LAYERS["engine"] = {*LAYERS}
LAYERS["export"] = {*LAYERS}
LAYERS["result_formats"] = {*LAYERS} - {"export"}
LAYERS["result"] = {*LAYERS}
LAYERS["tracking"] = {*LAYERS}
LAYERS["predictor"] = {*LAYERS}
LAYERS["detectron2_host"] = {*LAYERS} - {"export", "result_formats", "result", "tracking", "predictor"}
LAYERS["web"] = {*LAYERS} - {"detectron2_host", "export", "predictor"}
LAYERS["tools"] = {*LAYERS}
LAYERS["__init__"] = {"config", "engine", "predictor", "detectron2_host", "version"}
LAYERS["__main__"] = {"tools"}
# Former places of public names and commands: each only imports from the new place, and nothing imports it
ALIASES = {
    "mask2former.doctor",
    "mask2former.registry",
    "mask2former.storage",
    *(f"mask2former.evaluation.{name}" for name in ("coco_ap", "cityscapes_ap", "cityscapes_iou")),
    *(f"mask2former.evaluation.{name}" for name in ("mean_iou", "panoptic_quality")),
}
FOREIGN = {"detectron2", "torchvision", "timm", "transformers"}
MOST_MODULES = 16  # in a folder
LONGEST_CHAIN = 19  # files


def dotted_strings(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted strings of a file, among which are the modules that `import_module` gets."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
            yield node.value


def names(path: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports, at any depth and also through `import_module`.

    A file that mentions `import_module` imports every module of the project that it names in a string; in an
    f-string that starts with a package, every module of that package.
    """
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
    if "import_module" in text:
        for string in dotted_strings(tree):
            yield string
            if string.endswith("."):
                yield from (module for module in MODULES if module.startswith(string))


def module_of(dotted: str) -> str | None:
    """Return the module of this project that a dotted name lies in."""
    while dotted and dotted not in MODULES:
        dotted = dotted.rpartition(".")[0]
    return dotted if "." in dotted else None  # the bare package is the name of the logger, mostly


@functools.cache
def graph() -> dict[str, set[str]]:
    """Return which modules each module imports, type checking included."""
    return {
        module: {target for name in names(path) if (target := module_of(name)) and target != module}
        for module, path in MODULES.items()
    }


def layer(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_layers_import_downward_only(name: str) -> None:
    modules = [module for module in MODULES if layer(module) == name and module not in ALIASES]
    assert modules
    upward = {
        (module, target)
        for module in modules
        for target in graph()[module]
        if layer(target) not in {*LAYERS[name], name} or target in ALIASES
    }
    assert not upward


def test_every_file_has_a_layer() -> None:
    assert {layer(module) for module in MODULES if module not in ALIASES} == set(LAYERS)


def test_aliases_are_short() -> None:
    assert set(MODULES) >= ALIASES
    for module in ALIASES:
        assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= 24, module


def circles() -> list[list[str]]:
    """Return the strongly connected components with more than one module (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for target in graph()[module]:
            if target not in index:
                visit(target)
            if target in stack:
                low[module] = min(low[module], low[target])
        if low[module] == index[module]:
            component = [stack.pop()]
            while component[-1] != module:
                component.append(stack.pop())
            found.append(component)

    for module in graph():
        if module not in index:
            visit(module)
    return [sorted(component) for component in found if len(component) > 1]


def test_no_import_circle() -> None:
    assert not circles()


def longest_chain() -> list[str]:
    """Return the longest path of imports, from the top module down."""

    @functools.cache
    def below(module: str) -> tuple[str, ...]:
        return (module, *max((below(target) for target in graph()[module]), key=len, default=()))

    return list(max((below(module) for module in graph()), key=len))


def test_the_longest_import_chain() -> None:
    chain = longest_chain()
    assert len(chain) <= LONGEST_CHAIN, " > ".join(chain)


def test_folders_are_small() -> None:
    for folder in {path.parent for path in FILES}:
        modules = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(modules) <= MOST_MODULES, folder


def test_no_foreign_framework_outside_its_host() -> None:
    found = {
        (module, name)
        for module, path in MODULES.items()
        for name in names(path)
        if name.split(".")[0] in FOREIGN - ({"detectron2"} if layer(module) == "detectron2_host" else set())
    }
    assert not found


def test_the_detectron2_host_is_imported_on_request_only() -> None:
    """At module level nothing outside of the host imports it."""
    for module, path in MODULES.items():
        if layer(module) != "detectron2_host":
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.Import | ast.ImportFrom):
                    assert "detectron2_host" not in ast.unparse(node), path


def test_names_of_test_modules_are_unique() -> None:
    """Pytest imports them by name alone, and refuses the second."""
    counts = Counter(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert [name for name, count in counts.items() if count > 1] == []
