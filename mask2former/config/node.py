"""The configuration: Detectron2's keys and YAML semantics on fvcore's CfgNode.

`get_cfg` holds every key that the project reads (`defaults.py`). Keys of Detectron2 that have no effect here
(`detectron2_keys.py`) are accepted, with a warning unless a published file has that value. Any other key, and
any value of a wrong type, is an error that names file, key and value. A config remembers which file, command
line or other source set each key.
"""

import copy
import difflib
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fvcore.common.config import CfgNode as _FvcoreCfgNode

from mask2former.config.defaults import DEFAULTS, WORDS
from mask2former.config.detectron2_keys import (
    ALIASES,
    HOST_MODELS,
    IGNORED,
    PUBLISHED,
    REMOVED,
    check_refused,
    ignored_reason,
    warning_about,
)
from mask2former.config.ranges import NAMES, check_range
from mask2former.config.yaml_files import BASE_KEY, flatten, parse_yaml, read_layers

logger = logging.getLogger(__name__)

OTHER_FILES = (  # suffixes, kind, and where such a file belongs
    ((".pth", ".pt", ".pkl", ".safetensors"), "a checkpoint", "type MODEL.WEIGHTS {} after a config file"),
    ((".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp"), "an image", "type --input {} to predict"),
    ((".py",), "Python code", "type a .yaml file"),
)
COMMAND_LINE, DEFAULT = "command line", "default"
LONGEST_KEY = 100  # characters of an unknown key in a message
CONFIG_ROOTS = tuple(folder / "configs" for folder in Path(__file__).parents[1:3])
_SOURCES = "_sources"  # attribute of a node: key -> what set it
_CLOSED = "_closed"  # attribute of a node: its keys are complete
_SAME: dict[type, type] = {int: float, tuple: list}  # types of items that count as another

Node = TypeVar("Node", bound=_FvcoreCfgNode)


class CfgNode(_FvcoreCfgNode):
    """fvcore's node with safe files, ignored keys, and errors that name file, key and value.

    In a config of `get_cfg`, assigning a value to an unknown attribute is an error: a key may be misspelled.
    A project adds its keys in a section of its own (`cfg.MINE = CfgNode()`, then `cfg.MINE.RATE = 0.5`), or
    after `set_new_allowed(True)`, or by item (`cfg.MODEL["RATE"] = 0.5`).
    """

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"there is no key {name}{self._nearest(name)}")

    def __setattr__(self, name: str, value: Any) -> None:
        is_new = name not in self and not isinstance(value, _FvcoreCfgNode)
        if is_new and self.__dict__.get(_CLOSED) and not (self.is_new_allowed() or self.is_frozen()):
            advice = "to add a key, call set_new_allowed(True) first"
            raise AttributeError(f"there is no key {name}{self._nearest(name)} ({advice})")
        super().__setattr__(name, value)

    def _nearest(self, name: str) -> str:
        nearest = difflib.get_close_matches(name, self, n=1, cutoff=0.0)
        return f"; did you mean {nearest[0]}?" if nearest else ""

    def source(self, key: str) -> str:
        """Return what set `key`: a file's path, "command line", another reason, or "default"."""
        return self.__dict__.get(_SOURCES, {}).get(key, DEFAULT)

    def is_typed(self, key: str) -> bool:
        """Return True if the user typed `key` on the command line."""
        return self.source(key) == COMMAND_LINE

    def merge_from_file(self, cfg_filename: str | Path, allow_unsafe: bool = False) -> None:
        """Merge a YAML file and its `_BASE_` files. Nothing in them is executed.

        `allow_unsafe` has no effect; Detectron2's scripts pass it.

        Raises:
            FileNotFoundError: the file or one of its bases is missing.
            ValueError: an unknown key, a value of a wrong type, a file that cannot be parsed.
        """
        for path, values in read_layers(Path(cfg_filename).expanduser()):
            self._merge(values, str(path))

    def merge_from_other_cfg(self, cfg_other: Mapping[str, Any]) -> None:
        """Merge the keys of another node. Raises as `merge_from_file`."""
        self._merge(flatten(cfg_other), "merged config")

    def merge_from_list(self, cfg_list: Sequence[Any]) -> None:
        """Merge `[KEY, VALUE, KEY, VALUE, ...]`. Raises as `merge_from_file`."""
        if len(cfg_list) % 2:
            raise ValueError(
                f"{COMMAND_LINE}: overrides come as KEY VALUE pairs, but {cfg_list[-1]} is alone"
            )
        self._merge(dict(zip(cfg_list[::2], cfg_list[1::2], strict=True)), COMMAND_LINE)

    def set_value(self, key: str, value: Any, source: str) -> None:
        """Set a key that exists, for the reason `source`.

        Raises:
            ValueError: there is no such key, or the value has a wrong type or is out of range.
        """
        section, name = _locate(self, key)
        if section is None:
            raise ValueError(self._unknown(key, value, source))
        converted = _converted(key, value, section[name], source)
        check_range(key, converted, source)
        setattr(section, name, converted)
        self.__dict__.setdefault(_SOURCES, {})[key] = source

    @classmethod
    def _decode_cfg_value(cls, value: Any) -> Any:
        """Return text that is a Python literal as its value, and anything else as it is."""
        try:
            return super()._decode_cfg_value(value)
        except (MemoryError, RecursionError):  # what Python's parser raises for deep nesting
            return value

    def _merge(self, values: Mapping[str, Any], source: str) -> None:
        own = self.get("MODEL", {}).get("META_ARCHITECTURE", "")
        reads_all = values.get("MODEL.META_ARCHITECTURE", own) in HOST_MODELS
        for key, raw in values.items():
            value = self._decode_cfg_value(raw)
            if key in ALIASES:
                if _converted(key, value, False, source):
                    self.set_value(ALIASES[key], True, source)
            elif _locate(self, key)[0] is None and ignored_reason(key):
                if reads_all:
                    continue
                check_refused(key, value, source)
                if warning := warning_about(key, value):
                    logger.warning("%s: %s", source, warning)
            else:
                self.set_value(key, value, source)
        if self.get("VERSION", DEFAULTS["VERSION"]) != DEFAULTS["VERSION"]:
            raise ValueError(f"{source}: VERSION {self.VERSION} is not supported, only {DEFAULTS['VERSION']}")

    def _unknown(self, key: str, value: Any, source: str) -> str:
        if key.endswith(BASE_KEY):
            return f"{source}: {BASE_KEY} belongs at the top of a file"
        known = [*flatten(self), *IGNORED]
        if any(name.startswith(f"{key}.") for name in known):
            return f"{source}: {key} is a section of keys; it cannot be set to {_shown(value)}"
        key = key[:LONGEST_KEY]
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
        hint = f"use {REMOVED[key]}" if key in REMOVED else f"did you mean {nearest[0]}?"
        return f"{source}: unknown key {key} (value {_shown(value)}); {hint}"


def _locate(cfg: _FvcoreCfgNode, key: str) -> tuple[Any, str]:
    """Return the section that holds `key` (None if there is no such key) and the key's name within it."""
    *sections, name = key.split(".")
    node: Any = cfg
    for section in sections:
        node = node.get(section) if isinstance(node, _FvcoreCfgNode) else None
    found = isinstance(node, _FvcoreCfgNode) and name in node
    return (node, name) if found and not isinstance(node[name], _FvcoreCfgNode) else (None, name)


def _converted(key: str, value: Any, current: Any, source: str) -> Any:
    """Return `value` in the type of the key's default or, for a key without one, of its current value.

    Lists and tuples are interchangeable, and an int serves as a float. The items of a list must be of the
    types that the default holds, if it holds any: all numbers count as float, tuples as list.
    """
    like = DEFAULTS.get(key, current)
    if isinstance(value, (list, tuple)) and isinstance(like, (list, tuple)):
        given, allowed = ({_SAME.get(type(item), type(item)) for item in items} for items in (value, like))
        if not like or given <= allowed:
            return type(like)(value)
    elif like is None or type(value) is type(like) or value in WORDS.get(key, ()):
        return value
    if type(value) is int and isinstance(like, float) and abs(value) <= sys.float_info.max:
        return float(value)
    expected = f"{type(like).__name__} such as {like!r}"
    words = "".join(f", or '{word}'" for word in WORDS.get(key, ()))
    raise ValueError(
        f"{source}: {key} is {_shown(value)}, a {type(value).__name__}; it takes a {expected}{words}"
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def get_cfg() -> CfgNode:
    """Return every key with its default."""
    cfg = CfgNode()
    add_maskformer2_config(cfg)
    _close(cfg)
    return cfg


def _close(cfg: CfgNode) -> None:
    """Refuse unknown attributes from now on, in all sections."""
    cfg.__dict__[_CLOSED] = True
    for value in cfg.values():
        if isinstance(value, CfgNode):
            _close(value)


def add_maskformer2_config(cfg: _FvcoreCfgNode) -> None:
    """Add the keys that `cfg` lacks, and leave those that it has.

    Detectron2's own node also gets the ignored keys that published files set, since it refuses unknown keys.
    """
    defaults = dict(DEFAULTS)
    if not isinstance(cfg, CfgNode):
        defaults |= {key: values[0] for key, values in PUBLISHED.items()}
    for key, default in defaults.items():
        *sections, name = key.split(".")
        node = cfg
        for section in sections:
            node = node.setdefault(section, type(cfg)())
        node.setdefault(name, copy.deepcopy(default))


def with_values(cfg: Node, values: Mapping[str, Any], source: str) -> Node:
    """Return a copy of `cfg`, ours or Detectron2's, with other values; it is frozen if `cfg` is."""
    changed = cfg.clone()
    changed.defrost()
    for key, value in values.items():
        if isinstance(changed, CfgNode):
            changed.set_value(key, value, source)
        else:
            section, name = _locate(changed, key)
            setattr(section, name, value)
    if cfg.is_frozen():
        changed.freeze()
    return changed


def with_tasks(cfg: Node, tasks: Sequence[str], source: str) -> Node:
    """Return a copy of `cfg` with the results of `tasks` on, and no others: MODEL.MASK_FORMER.TEST.*_ON.

    Raises:
        ValueError: none is given, or one is unknown; `source` names the argument.
    """
    known = NAMES["SOLVER.TASKS"]
    if isinstance(tasks, str) or not tasks or not set(tasks) <= set(known):
        raise ValueError(f"{source} is {tasks!r}; it must be a list with some of {', '.join(known)}")
    switches = {f"MODEL.MASK_FORMER.TEST.{task.upper()}_ON": task in tasks for task in known}
    return with_values(cfg, switches, source)


def load_config(config_file: str | Path, opts: Sequence[Any] = ()) -> CfgNode:
    """Return the defaults, changed by a config file (see `resolve_config_file`), then by `KEY VALUE` pairs.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown key or a value of a wrong type.
    """
    cfg = get_cfg()
    cfg.merge_from_file(resolve_config_file(config_file))
    cfg.merge_from_list(opts)
    return cfg


def config_from_text(text: str, source: str, opts: Sequence[Any] = ()) -> CfgNode:
    """Return the config that `cfg.dump()` wrote, changed by `KEY VALUE` pairs.

    `source` names the text in errors, which are those of `load_config`. Keys of earlier releases are dropped.
    """
    cfg = get_cfg()
    values = parse_yaml(text, source)
    cfg._merge({key: value for key, value in values.items() if key not in REMOVED}, source)
    cfg.merge_from_list(opts)
    return cfg


def resolve_config_file(name: str | Path) -> Path:
    """Return the path of a config file, or of one of the project's, with or without a leading `configs/`.

    Raises:
        FileNotFoundError: no such file; the message gives the nearest name.
    """
    path = Path(name).expanduser()
    relative = Path(*path.parts[1:]) if path.parts[:1] == ("configs",) else path
    for candidate in (path, *(root / relative for root in CONFIG_ROOTS)):
        if candidate.is_file():
            _check_kind(candidate)
            return candidate
    if path.exists():
        kind = "a folder" if path.is_dir() else "a pipe, socket or device"
        raise FileNotFoundError(f"{name}: is {kind}, not a config file; type a .yaml file")
    nearest = difflib.get_close_matches(str(relative), config_names(), n=1, cutoff=0.0)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    if not path.suffix:
        hint += f' If it is a published model, type --model {name} or Predictor.from_zoo("{name}")'
    raise FileNotFoundError(f"no config file '{name}', here or among those of the project{hint}")


def _check_kind(file: Path) -> None:
    """Raise ValueError, with what to type, for a file that is of another kind by its name."""
    for suffixes, kind, advice in OTHER_FILES:
        if file.suffix.lower() in suffixes:
            raise ValueError(f"{file}: is {kind}, not a config file; {advice.format(file)}")


def config_names() -> list[str]:
    """Return the names of the project's config files, as `resolve_config_file` takes them."""
    root = next((folder for folder in CONFIG_ROOTS if folder.is_dir()), CONFIG_ROOTS[0])
    files = (path.relative_to(root) for path in root.rglob("*.yaml"))
    return sorted(path.as_posix() for path in files if path.parts[0] != "_base_")
