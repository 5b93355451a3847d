"""The configuration: Detectron2's keys and YAML semantics on fvcore's CfgNode.

`get_cfg` holds every key that the project reads (`config_keys.DEFAULTS`). Keys of Detectron2 that mean
nothing here (`config_keys.IGNORED`) are accepted wherever a key is, with a warning where that could mislead.
Any other key, and any value of a wrong type, is an error that names file, key and value.
"""

import copy
import difflib
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode as _FvcoreCfgNode

from mask2former.config.defaults import DEFAULTS
from mask2former.config.detectron2_keys import IGNORED
from mask2former.config.yaml_files import BASE_KEY, flatten, parse_yaml, read_layers

logger = logging.getLogger(__name__)

COMMAND_LINE = "command line"
_CONFIG_ROOTS = tuple(folder / "configs" for folder in Path(__file__).parents[1:3])


class CfgNode(_FvcoreCfgNode):
    """fvcore's node, with safe files, ignored keys and errors that say where and what."""

    def merge_from_file(self, cfg_filename: str | Path, allow_unsafe: bool = False) -> None:
        """Take over a YAML file and its `_BASE_` files. Nothing in them is ever run.

        `allow_unsafe` is there because Detectron2's scripts pass it.

        Raises:
            FileNotFoundError: the file or a base of it is missing.
            ValueError: an unknown key, a value of a wrong type, a file that cannot be parsed.
        """
        for path, values in read_layers(Path(cfg_filename).expanduser()):
            self._merge(values, str(path))

    def merge_from_other_cfg(self, cfg_other: Mapping[str, Any]) -> None:
        """Take over the keys of another node. Errors as in `merge_from_file`."""
        self._merge(flatten(cfg_other), "merged config")

    def merge_from_list(self, cfg_list: Sequence[Any]) -> None:
        """Take over `[KEY, VALUE, KEY, VALUE, ...]`. Errors as in `merge_from_file`."""
        if len(cfg_list) % 2:
            raise ValueError(
                f"{COMMAND_LINE}: overrides come as KEY VALUE pairs, but {cfg_list[-1]} is alone"
            )
        self._merge(dict(zip(cfg_list[::2], cfg_list[1::2], strict=True)), COMMAND_LINE)

    def _merge(self, values: Mapping[str, Any], source: str) -> None:
        for key, raw in values.items():
            value = self._decode_cfg_value(raw)
            section, name = self._locate(key)
            if section is not None:
                setattr(section, name, _coerced(value, section[name], f"{source}: {key}"))
            elif key in IGNORED:
                _check_ignored(key, value, source)
            else:
                raise ValueError(self._unknown(key, value, source))
        if self.get("VERSION", DEFAULTS["VERSION"]) != DEFAULTS["VERSION"]:
            raise ValueError(f"{source}: VERSION {self.VERSION} is not supported, only {DEFAULTS['VERSION']}")

    def _locate(self, key: str) -> tuple["CfgNode | None", str]:
        """The section that holds `key` (None: there is no such key) and the key's name within it."""
        *sections, name = key.split(".")
        node: Any = self
        for section in sections:
            node = node.get(section) if isinstance(node, _FvcoreCfgNode) else None
        found = isinstance(node, _FvcoreCfgNode) and name in node
        return (node, name) if found and not isinstance(node[name], _FvcoreCfgNode) else (None, name)

    def _unknown(self, key: str, value: Any, source: str) -> str:
        if key.endswith(BASE_KEY):
            return f"{source}: {BASE_KEY} belongs at the top of a file"
        known = [*flatten(self), *IGNORED]
        if any(name.startswith(f"{key}.") for name in known):
            return f"{source}: {key} is a section of keys; it cannot be set to {value!r}"
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
        return f"{source}: unknown key {key} (value {value!r}); did you mean {nearest[0]}?"


def _coerced(value: Any, current: Any, where: str) -> Any:
    """`value` in the type of `current`: lists and tuples are alike, an int serves as a float.

    The items of a list must be of the kinds that `current` holds, if it holds any.
    """
    if isinstance(value, (list, tuple)) and isinstance(current, (list, tuple)):
        if not current or {_kind(item) for item in value} <= {_kind(item) for item in current}:
            return type(current)(value)
    elif current is None or type(value) is type(current):
        return value
    if type(value) is int and isinstance(current, float):
        return float(value)
    given, expected = type(value).__name__, type(current).__name__
    raise ValueError(f"{where} is {value!r}, a {given}; it takes a {expected} such as {current!r}")


def _kind(item: Any) -> type:
    """The type of a list's item: numbers are alike, and lists and tuples are."""
    return {int: float, tuple: list}.get(type(item), type(item))


def _check_ignored(key: str, value: Any, source: str) -> None:
    """Warn of a value that could mislead; refuse one that would mean another model."""
    row = IGNORED[key]
    as_list = [list(v) if isinstance(v, tuple) else v for v in (value, row.default, *row.published)]
    if as_list[0] in as_list[1:]:
        return
    if row.refused:
        raise ValueError(f"{source}: {key} = {value!r} is not supported: {row.reason}")
    logger.warning("%s: %s = %r has no effect: %s", source, key, value, row.reason)


def get_cfg() -> CfgNode:
    """Every key at its default."""
    cfg = CfgNode()
    add_maskformer2_config(cfg)
    return cfg


def add_maskformer2_config(cfg: _FvcoreCfgNode) -> None:
    """Add the keys that `cfg` lacks, leaving those it has.

    On Detectron2's own node this includes the keys that only its published files set, since it refuses keys
    that it does not know.
    """
    defaults = dict(DEFAULTS)
    if not isinstance(cfg, CfgNode):
        defaults |= {key: row.default for key, row in IGNORED.items()}
    for key, default in defaults.items():
        *sections, name = key.split(".")
        node = cfg
        for section in sections:
            node = node.setdefault(section, type(cfg)())
        node.setdefault(name, copy.deepcopy(default))


def load_config(config_file: str | Path, opts: Sequence[Any] = ()) -> CfgNode:
    """The defaults, then a config file (named as for `resolve_config_file`), then `KEY VALUE` pairs.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown key or a value of a wrong type.
    """
    cfg = get_cfg()
    cfg.merge_from_file(resolve_config_file(config_file))
    cfg.merge_from_list(opts)
    return cfg


def config_from_text(text: str, source: str) -> CfgNode:
    """The config that `cfg.dump()` wrote; `source` names it in errors. Errors as in `load_config`."""
    cfg = get_cfg()
    cfg._merge(parse_yaml(text, source), source)
    return cfg


def typed_keys(opts: Iterable[Any]) -> set[str]:
    """The keys among `KEY VALUE` pairs: what the user typed and therefore means."""
    return set(list(opts)[::2])


def resolve_config_file(name: str | Path) -> Path:
    """A path as it is; otherwise a file that comes with the project, with or without a leading `configs/`.

    Raises:
        FileNotFoundError: no such file; the message gives the nearest name.
    """
    path = Path(name).expanduser()
    relative = Path(*path.parts[1:]) if path.parts[:1] == ("configs",) else path
    for candidate in (path, *(root / relative for root in _CONFIG_ROOTS)):
        if candidate.is_file():
            return candidate
    nearest = difflib.get_close_matches(str(relative), config_names(), n=1, cutoff=0.0)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    raise FileNotFoundError(f"no config file '{name}', here or among those of the project{hint}")


def config_names() -> list[str]:
    """The config files that come with the project, as `resolve_config_file` takes them."""
    root = next((folder for folder in _CONFIG_ROOTS if folder.is_dir()), _CONFIG_ROOTS[0])
    files = (path.relative_to(root) for path in root.rglob("*.yaml"))
    return sorted(path.as_posix() for path in files if path.parts[0] != "_base_")
