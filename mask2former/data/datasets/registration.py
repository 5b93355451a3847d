"""Registration of datasets by name, which does not read their files yet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mask2former.data.catalog import DatasetCatalog, Metadata, MetadataCatalog, Record
from mask2former.data.datasets.files import datasets_root
from mask2former.data.load_context import LoadContext

Facts = dict[str, Any]  # attributes of `Metadata` by name
Load = Callable[[Metadata, LoadContext], list[Record]]
Derive = Callable[[LoadContext], Facts]


def register(name: str, facts: Facts, derive: Derive, load: Load) -> None:
    """Register a dataset whose records are `load(metadata, context)`.

    `facts` are known now. `derive(context)` returns the other facts; it is called when one of them is needed,
    once for each value of $DETECTRON2_DATASETS.
    """
    metadata = MetadataCatalog.get(name)
    derived: dict[Path, Facts] = {}

    def derived_facts(context: LoadContext | None = None) -> Facts:
        root = datasets_root()
        if root not in derived:
            derived[root] = derive(context or LoadContext())
        return derived[root]

    def read(context: LoadContext) -> list[Record]:
        derived_facts(context)  # they may stand in the file of the records, which is parsed once
        return load(metadata, context)

    DatasetCatalog.register_loader(name, read)
    metadata.set(**facts).derive(derived_facts)  # in this order, so that setting derives nothing


def register_below_root(name: str, paths: dict[str, str], facts: Facts, load: Load) -> None:
    """Register a dataset whose files lie below the root of all datasets.

    `paths` (fact -> path below the root) follow $DETECTRON2_DATASETS as it is when they are used.
    """
    register(name, facts, lambda _: {key: str(datasets_root() / path) for key, path in paths.items()}, load)
