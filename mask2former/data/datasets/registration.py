"""How a dataset becomes known by name. Nothing is read then: neither its files nor its facts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mask2former.data.catalog import DatasetCatalog, Metadata, MetadataCatalog, Record
from mask2former.data.datasets.files import datasets_root, each_file_parsed_once

Facts = dict[str, Any]
Load = Callable[[Metadata], list[Record]]


def register(name: str, facts: Facts, derived: Callable[[], Facts], load: Load) -> None:
    """Make known as `name` what `load(metadata)` reads; `derived()` is asked for what `facts` do not tell."""
    metadata = MetadataCatalog.get(name)

    def read() -> list[Record]:
        with each_file_parsed_once():  # for the records, and for facts that stand in the same file
            return load(metadata)

    DatasetCatalog.register(name, read)
    metadata.set(**facts).derive(derived)  # in this order, so that setting derives nothing


def register_below_root(name: str, paths: dict[str, str], facts: Callable[[], Facts], load: Load) -> None:
    """The same for a dataset below the root of all datasets.

    `paths` (fact -> path below the root) follow $DETECTRON2_DATASETS as it is when they are used.
    """

    def derived() -> Facts:
        return {**{key: str(datasets_root() / path) for key, path in paths.items()}, **facts()}

    register(name, {}, derived, load)
