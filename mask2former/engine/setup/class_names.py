"""Names and colors of a model's classes, from the metadata of its checkpoint or dataset."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mask2former.drawing.colors import Color, class_colors

NUMBER = (int, float, np.integer, np.floating)


def class_names_and_colors(
    metadata: Mapping[str, Any], num_classes: int, source: str = "metadata"
) -> tuple[list[str], list[Color]]:
    """Return the K names and RGB colors of a model's classes, or generic ones if the metadata has not K.

    Raises:
        ValueError: names are not strings, or colors not three numbers from 0 to 255; it names `source`.
    """
    for kind in ("stuff", "thing"):
        names = _items(metadata, f"{kind}_classes", lambda name: isinstance(name, str), "names", source)
        if len(names) == num_classes:
            colors = _items(metadata, f"{kind}_colors", _is_color, "colors [R, G, B] from 0 to 255", source)
            known = len(colors) == num_classes
            return list(names), [tuple(color) for color in (colors if known else class_colors(num_classes))]
    return [f"class {k}" for k in range(num_classes)], class_colors(num_classes)


def _items(
    metadata: Mapping[str, Any], key: str, is_valid: Callable[[Any], bool], expected: str, source: str
) -> Sequence[Any]:
    value = metadata.get(key)
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{source}: {key} is a {type(value).__name__}; expected a list of {expected}")
    for number, item in enumerate(value):
        if not is_valid(item):
            raise ValueError(f"{source}: {key}[{number}] is {repr(item)[:100]}; expected {expected}")
    return value


def _is_color(value: Any) -> bool:
    """Return True for three numbers from 0 to 255 in a list, tuple or array."""
    parts = value.tolist() if isinstance(value, np.ndarray) else value
    is_triple = isinstance(parts, (list, tuple)) and len(parts) == 3
    return is_triple and all(isinstance(part, NUMBER) and 0 <= part <= 255 for part in parts)
