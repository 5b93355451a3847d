"""Reading configuration files: safe YAML, its `_BASE_` chain, and the arithmetic in published files.

Published Base files compute lists by `!!python/object/apply:eval`. Python never evaluates such an expression:
its syntax tree is walked, and anything but arithmetic on literals is refused.
"""

import ast
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

BASE_KEY = "_BASE_"
MAX_RANGE = 10_000  # the most numbers in a computed list
MAX_BYTES = 2_000_000  # of a file
MAX_DEPTH = 64  # of a `_BASE_` chain
MAX_LAYERS = 256  # of a `_BASE_` chain, in which the number of files can double at each level
MAX_VALUES = 100_000  # of a file, with aliases written out: they too can double at each level
MAX_NODES = 30_000  # of a file as it is written
MAX_CHARACTERS = 1_000_000  # of a file
SHOWN = 200  # characters of a value in a message
MAX_NUMBER = 100  # characters of a number: reading `1:1:1...`, which counts in sixties, takes quadratic time

NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")

_OPERATORS: dict[type[ast.AST], Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_FUNCTIONS: dict[str, Callable[..., float]] = {"int": int, "float": float, "round": round}


def evaluate_arithmetic(expression: str) -> Any:
    """Compute arithmetic on number literals: a number or a list of numbers.

    A list may be a comprehension such as `[int(x * 0.1 * 640) for x in range(5, 21)]`.

    Raises:
        ValueError: the expression holds anything else; it is not run.
    """
    try:
        tree = ast.parse(expression, mode="eval").body
        if isinstance(tree, ast.ListComp):
            return _list(tree)
        if isinstance(tree, (ast.List, ast.Tuple)):
            return [_number(item, {}) for item in tree.elts]
        return _number(tree, {})
    except (SyntaxError, TypeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"cannot compute '{expression}': {error}") from error


def _list(tree: ast.ListComp) -> list[float]:
    """Compute `[<number of x> for x in range(...)]`."""
    loop, *more = tree.generators
    if more or loop.ifs or not isinstance(loop.target, ast.Name):
        raise _refused(tree)
    call = loop.iter
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "range"):
        raise _refused(call)
    values = range(*(int(_number(argument, {})) for argument in call.args))
    if len(values) > MAX_RANGE:
        raise ValueError(f"a computed list of {len(values)} numbers is too long")
    return [_number(tree.elt, {loop.target.id: value}) for value in values]


def _number(node: ast.AST, names: Mapping[str, float]) -> float:
    """Compute the number of a node; `names` holds the variable of the comprehension."""
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return node.value
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_number(node.operand, names))
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_number(node.left, names), _number(node.right, names))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
        return _FUNCTIONS[node.func.id](*(_number(argument, names) for argument in node.args))
    raise _refused(node)


def _refused(node: ast.AST) -> ValueError:
    return ValueError(f"'{ast.unparse(node)}' is not arithmetic on numbers; it is not run")


def _num_values(node: yaml.Node, counted: dict[yaml.Node, int | None]) -> int:
    """Return the number of nodes from `node` down; `counted` has None for those that are being counted."""
    if node not in counted:
        counted[node] = None
        children: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        counted[node] = 1 + sum(_num_values(child, counted) for child in children)
    count = counted[node]
    if count is None:
        raise RecursionError
    return count


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with bounds, and with the one tag of the published files."""

    num_nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Return the next node; there must not be too many, nor a long number."""
        self.num_nodes += 1
        if self.num_nodes > MAX_NODES:
            raise ValueError(f"holds more than {MAX_NODES} values")
        node = super().compose_node(parent, index)
        if isinstance(node, yaml.ScalarNode) and node.tag in NUMBER_TAGS and len(node.value) > MAX_NUMBER:
            raise ValueError(f"line {node.start_mark.line + 1}: a number of {len(node.value)} characters")
        return node

    def get_single_node(self) -> yaml.Node | None:
        """Return the document's node; its aliases written out must not be too many values."""
        node = super().get_single_node()
        if node is not None and _num_values(node, {}) > MAX_VALUES:
            raise ValueError(f"holds more than {MAX_VALUES} values, with its aliases written out")
        return node

    def evaluate(self, node: yaml.Node) -> Any:
        """Compute `!!python/object/apply:eval ["expression"]`, a list or a number."""
        arguments = self.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else []
        if len(arguments) != 1 or not isinstance(arguments[0], str):
            raise ValueError(f"line {node.start_mark.line + 1}: eval takes one expression")
        return evaluate_arithmetic(arguments[0])


_Loader.add_constructor("tag:yaml.org,2002:python/object/apply:eval", _Loader.evaluate)


def load_yaml(text: str) -> Any:
    """Return the content of a YAML.

    Raises:
        ValueError: it is not YAML, has an unsafe tag, or is too large or nested too deeply.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"has {len(text)} characters, more than {MAX_CHARACTERS}")
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise ValueError("is nested too deeply, or contains itself") from None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(where + " ".join(str(problem or error).split())[:SHOWN]) from error
    except (AttributeError, LookupError, TypeError) as error:  # PyYAML does not check that tags fit values
        raise ValueError(f"has a tag that does not fit its value ({error})") from error


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """Return the keys in `text`, named as by `flatten`; `source` names the text in errors.

    Raises:
        ValueError: it is not YAML, has an unsafe tag, or is not a mapping.
    """
    try:
        values = load_yaml(text)
        if values is not None and not isinstance(values, dict):
            raise ValueError(f"holds a {type(values).__name__}, not keys with values")
        return flatten(values or {})
    except ValueError as error:
        raise ValueError(f"{source}: {str(error)[: 2 * SHOWN]}") from error


def flatten(values: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested sections into `{"SECTION.KEY": value}`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        flat.update(flatten(value, f"{key}.") if isinstance(value, Mapping) else {key: value})
    return flat


def read_layers(path: Path, below: tuple[Path, ...] = ()) -> list[tuple[Path, dict[str, Any]]]:
    """Read a file's `_BASE_` files and the file itself, in this order: later layers win.

    `below` are the files whose `_BASE_` led here.

    Raises:
        FileNotFoundError: the file or one of its bases is missing.
        ValueError: the file cannot be parsed, or the bases form a circle.
    """
    path = path.resolve()
    origin = f" (_BASE_ of {below[-1]})" if below else ""
    if path in below:
        raise ValueError(f"{below[-1]}: {BASE_KEY} leads back to {path}")
    if not path.is_file():
        raise FileNotFoundError(f"no config file {path}{origin}")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: is larger than {MAX_BYTES} bytes, so not a config file")
    if len(below) >= MAX_DEPTH:
        raise ValueError(f"{path}: is reached by {MAX_DEPTH} {BASE_KEY} in a row")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not text, so not a config file ({error})") from error
    values = parse_yaml(text, str(path))
    layers = []
    for base in _bases(path, values.pop(BASE_KEY, [])):
        layers += read_layers(base, (*below, path))
        if len(layers) >= MAX_LAYERS:
            raise ValueError(f"{path}: {BASE_KEY} leads to {MAX_LAYERS} files or more, counted each time")
    return [*layers, (path, values)]


def _bases(path: Path, named: Any) -> list[Path]:
    """Return the files that `_BASE_` of the file `path` names."""
    bases = [named] if isinstance(named, str) else named
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ValueError(
            f"{path}: {BASE_KEY} is {repr(named)[:SHOWN]}; it takes a file name or a list of them"
        )
    found = []
    for base in bases:
        try:
            found.append((path.parent / Path(base).expanduser()).resolve())
            found[-1].exists()
        except (ValueError, OSError, RuntimeError) as error:  # a null byte, a long name, an unknown ~user
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"{path}: {BASE_KEY} is {base[:SHOWN]!r}: {reason}") from error
    return found
