"""Registration of datasets by name. It reads nothing: neither the files nor the facts that stand in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mask2former.data.catalog import DatasetCatalog, Metadata, MetadataCatalog, Record
from mask2former.data.datasets.files import datasets_root, each_file_parsed_once

Facts = dict[str, Any]  # attributes of `Metadata` by name
Load = Callable[[Metadata], list[Record]]


def register(name: str, facts: Facts, derived: Callable[[], Facts], load: Load) -> None:
    """Register a dataset whose records are `load(metadata)`.

    `facts` are known now; `derived()` returns the other facts, and is called when one of them is needed.
    """
    metadata = MetadataCatalog.get(name)

    def read() -> list[Record]:
        with each_file_parsed_once():  # for the records, and for facts that stand in the same file
            return load(metadata)

    DatasetCatalog.register(name, read)
    metadata.set(**facts).derive(derived)  # in this order, so that setting derives nothing


def register_below_root(name: str, paths: dict[str, str], facts: Callable[[], Facts], load: Load) -> None:
    """Register a dataset whose files lie below the root of all datasets.

    `paths` (fact -> path below the root) follow $DETECTRON2_DATASETS as it is when they are used.
    """

    def derived() -> Facts:
        return {**{key: str(datasets_root() / path) for key, path in paths.items()}, **facts()}

    register(name, {}, derived, load)
