"""Catalogs with Detectron2's interface: dataset name -> list of dicts, dataset name -> metadata.

Nothing is read when a dataset is registered: `DatasetCatalog.get` reads the records, and facts that are
stored in files or depend on the environment are derived on access.
"""

from __future__ import annotations

import builtins
import functools
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, Generic, Protocol, TypeVar

from mask2former.data.errors import DatasetError
from mask2former.data.load_context import LoadContext

Record = dict[str, Any]
Entry = TypeVar("Entry")


class Metadata:
    """Facts about one dataset, as attributes.

    Setting a fact again to another value is an error. Facts that were not set are looked up in the dict that
    the function given to `derive` returns.
    """

    def __init__(self, name: str) -> None:
        self.__dict__.update(_facts={"name": name}, _derived=dict)

    def derive(self, facts: Callable[[], dict[str, Any]]) -> Metadata:
        """Look up unset facts in `facts()`, which is called at each access."""
        self.__dict__["_derived"] = facts
        return self

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__"):  # copy and pickle access such names before _facts exists
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
        """Return a fact, or `default` if the dataset does not have it."""
        return self.as_dict().get(key, default)

    def snapshot(self) -> Metadata:
        """Return a picklable copy with all facts as they are now."""
        return Metadata(self._facts["name"]).set(**self.as_dict())

    def adopt(self, facts: dict[str, Any]) -> None:
        """Take over all facts of another process; facts set here win, and none are derived from now on."""
        self.__dict__.update(_facts={**facts, **self._facts}, _derived=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return all facts."""
        return {**self._derived(), **self._facts}

    def __repr__(self) -> str:
        return f"Metadata({self._facts})"


class HostCatalog(Protocol):
    """Catalog of a framework that hosts this project: it gets our datasets and offers its own."""

    def add(self, name: str) -> None:
        """Add a dataset of this project."""

    def __contains__(self, name: str) -> bool: ...
    def get(self, name: str) -> list[Record]:
        """Return the records of a dataset of the host."""

    def facts(self, name: str) -> dict[str, Any]:
        """Return the metadata of a dataset of the host; empty if it has none of that name."""


class _Catalog(Generic[Entry]):
    """Dataset name -> entry, with a host catalog for unknown names."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._host: HostCatalog | None = None

    def join(self, host: HostCatalog) -> None:
        """Look up unknown names in `host`."""
        self._host = host

    def list(self) -> builtins.list[str]:
        """Return the names, sorted."""
        return sorted(self._entries)

    def remove(self, name: str) -> None:
        """Remove the entry of a dataset from this catalog; the other catalog keeps its own."""
        self._entries.pop(name)


class _DatasetCatalog(_Catalog[Callable[[LoadContext], list[Record]]]):
    """Dataset name -> function that returns the list of dicts."""

    def join(self, host: HostCatalog) -> None:
        """Add every dataset, also later ones, to `host`, and look up unknown names there."""
        super().join(host)
        for name in self._entries:
            host.add(name)

    def register(self, name: str, func: Callable[[], builtins.list[Record]]) -> None:
        """Register `func()` as the dataset `name`, which must be new."""
        self.register_loader(name, lambda context: func())

    def register_loader(self, name: str, load: Callable[[LoadContext], builtins.list[Record]]) -> None:
        """Register `load(context)`, which parses files and reports errors by the context."""
        if name in self._entries:
            raise DatasetError(f"a dataset called '{name}' is registered already")
        self._entries[name] = load
        if self._host is not None:
            self._host.add(name)

    def get(self, name: str, context: LoadContext | None = None) -> builtins.list[Record]:
        """Read a dataset and return its records; `context` may collect the errors of single records.

        Raises:
            DatasetError: the name is unknown (the message lists the known ones), or the dataset is broken.
        """
        if name in self._entries:
            return self._entries[name](context or LoadContext())
        if self._host is not None and name in self._host:
            return self._host.get(name)
        near = get_close_matches(name, self._entries, n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise DatasetError(f"no dataset is called '{name}'; {hint}registered are: {', '.join(self.list())}")

    def __contains__(self, name: str) -> bool:
        return name in self._entries or (self._host is not None and name in self._host)


class _MetadataCatalog(_Catalog[Metadata]):
    """Dataset name -> `Metadata`, created on first access: facts may be set before registration."""

    def get(self, name: str) -> Metadata:
        """Return the metadata of the dataset `name`."""
        if name not in self._entries:
            self._entries[name] = Metadata(name)
            if self._host is not None:
                self._entries[name].derive(functools.partial(self._host.facts, name))
        return self._entries[name]


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()
