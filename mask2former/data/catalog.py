"""The catalogs by which datasets are known: a name -> its list of dicts, a name -> the facts about it.

Both speak Detectron2's interface. Nothing is read when a dataset is registered: the list is made by
`DatasetCatalog.get`, and facts that stand in files or depend on the environment are derived on access.
"""

from __future__ import annotations

import builtins
import functools
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, Protocol

from mask2former.data.errors import DatasetError
from mask2former.data.load_context import LoadContext

Record = dict[str, Any]


def _no_facts() -> dict[str, Any]:
    return {}


class Metadata:
    """The facts about one dataset, as attributes.

    A fact is set once: setting another value for it is an error. What was not set is looked up in the dict
    that the function given to `derive` returns.
    """

    def __init__(self, name: str) -> None:
        self.__dict__.update(_facts={"name": name}, _derived=_no_facts)

    def derive(self, facts: Callable[[], dict[str, Any]]) -> Metadata:
        """Look up unset facts in `facts()`, which is called at each look-up."""
        self.__dict__["_derived"] = facts
        return self

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__"):  # copy and pickle ask for such names before there are facts
            raise AttributeError(key)
        if key in self._facts:
            return self._facts[key]
        facts = self._derived()
        if key not in facts:
            known = ", ".join(sorted({*self._facts, *facts}))
            raise AttributeError(f"dataset '{self._facts['name']}' has no metadata '{key}'; it has: {known}")
        return facts[key]

    def __setattr__(self, key: str, value: Any) -> None:
        known = self.as_dict()
        if key in known and known[key] != value:
            name = known["name"]
            raise DatasetError(
                f"metadata '{key}' of dataset '{name}' is {known[key]!r}, and cannot become {value!r}"
            )
        self._facts[key] = value

    def set(self, **facts: Any) -> Metadata:
        """Set several facts."""
        for key, value in facts.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """The fact, or `default` where the dataset has none of that name."""
        return self.as_dict().get(key, default)

    def snapshot(self) -> Metadata:
        """A copy with all facts as they are now, which other processes can be given."""
        return Metadata(self._facts["name"]).set(**self.as_dict())

    def adopt(self, facts: dict[str, Any]) -> None:
        """Take over all facts of another process; facts set here win, and none are derived from now on."""
        self.__dict__.update(_facts={**facts, **self._facts}, _derived=_no_facts)

    def as_dict(self) -> dict[str, Any]:
        """All facts."""
        return {**self._derived(), **self._facts}

    def __repr__(self) -> str:
        return f"Metadata({self._facts})"


class HostCatalog(Protocol):
    """The datasets of the framework that the project runs in: it is told of ours, and has some of its own."""

    def add(self, name: str) -> None:
        """A dataset of ours is called `name`."""

    def __contains__(self, name: str) -> bool: ...
    def get(self, name: str) -> list[Record]:
        """The records of a dataset of the host."""

    def facts(self, name: str) -> dict[str, Any]:
        """What the host knows about its dataset `name`; nothing where it has none."""


class _DatasetCatalog:
    """Name -> function that returns the list of dicts."""

    def __init__(self) -> None:
        self._loaders: dict[str, Callable[[LoadContext], list[Record]]] = {}
        self._host: HostCatalog | None = None

    def join(self, host: HostCatalog) -> None:
        """Tell `host` of every dataset, also of later ones, and look there for names that are not here."""
        self._host = host
        for name in self._loaders:
            host.add(name)

    def register(self, name: str, func: Callable[[], builtins.list[Record]]) -> None:
        """Register `func()` as the dataset `name`, which must be new."""
        self.register_loader(name, lambda context: func())

    def register_loader(self, name: str, load: Callable[[LoadContext], builtins.list[Record]]) -> None:
        """Register `load(context)`, which parses files and reports errors by the context."""
        if name in self._loaders:
            raise DatasetError(f"a dataset called '{name}' is registered already")
        self._loaders[name] = load
        if self._host is not None:
            self._host.add(name)

    def get(self, name: str, context: LoadContext | None = None) -> builtins.list[Record]:
        """Read a dataset and return its records; `context` may collect the errors of single records.

        Raises:
            DatasetError: no dataset has that name (the message tells which there are), or it cannot be read.
        """
        if name not in self._loaders:
            if self._host is not None and name in self._host:
                return self._host.get(name)
            near = get_close_matches(name, self._loaders, n=3)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise DatasetError(
                f"no dataset is called '{name}'; {hint}registered are: {', '.join(self.list())}"
            )
        return self._loaders[name](context or LoadContext())

    def list(self) -> builtins.list[str]:
        """The names, sorted."""
        return sorted(self._loaders)

    def remove(self, name: str) -> None:
        """Forget the dataset; its metadata is apart."""
        self._loaders.pop(name)

    def __contains__(self, name: str) -> bool:
        return name in self._loaders or (self._host is not None and name in self._host)


class _MetadataCatalog:
    """Name -> `Metadata`, made when first asked for: facts may be set before or after registration."""

    def __init__(self) -> None:
        self._entries: dict[str, Metadata] = {}
        self._host: HostCatalog | None = None

    def join(self, host: HostCatalog) -> None:
        """Ask `host` for facts about datasets that nothing here tells of."""
        self._host = host

    def get(self, name: str) -> Metadata:
        """The facts about the dataset `name`."""
        if name not in self._entries:
            self._entries[name] = Metadata(name)
            if self._host is not None:
                self._entries[name].derive(functools.partial(self._host.facts, name))
        return self._entries[name]

    def list(self) -> builtins.list[str]:
        """The names, sorted."""
        return sorted(self._entries)

    def remove(self, name: str) -> None:
        """Forget the facts."""
        self._entries.pop(name)


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()
