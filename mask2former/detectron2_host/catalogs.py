"""Our datasets in Detectron2's catalogs, and its datasets in ours.

If both sides have a dataset of the same name, as for COCO and Cityscapes, Detectron2's code reads
Detectron2's records and our code reads ours.
"""

import functools
from typing import Any

from detectron2.data import DatasetCatalog as HostDatasets
from detectron2.data import MetadataCatalog as HostMetadata
from detectron2.data.catalog import Metadata

from mask2former.data import DatasetCatalog, MetadataCatalog
from mask2former.data.catalog import Record


class MirroredMetadata(Metadata):
    """Detectron2's metadata of one of our datasets; facts that are not set in it come from our catalog."""

    def __getattr__(self, key: str) -> Any:
        ours = {} if key.startswith("__") else mirrored_facts(self.name)
        return ours[key] if key in ours else super().__getattr__(key)

    def as_dict(self) -> dict[str, Any]:
        """Return all facts, as they are now."""
        return {**mirrored_facts(self.name), **super().as_dict()}


def mirrored_facts(name: str) -> dict[str, Any]:
    """Return the facts about one of our datasets in the form that Detectron2 reads.

    Its Visualizer looks up a thing's name and color in `thing_classes` and `thing_colors` by the class id.
    If the things are not the first classes, these two lists therefore hold all classes, as in Detectron2's
    own panoptic datasets.
    """
    facts = MetadataCatalog.get(name).as_dict()
    things = facts.get("thing_ids", [])
    if things == list(range(len(things))):
        return facts
    keys = [kind for kind in ("classes", "colors") if f"stuff_{kind}" in facts]
    return {**facts, **{f"thing_{kind}": facts[f"stuff_{kind}"] for kind in keys}}


class JoinedCatalog:
    """Detectron2's catalogs as a `mask2former.data.catalog.HostCatalog`."""

    def __init__(self) -> None:
        self._mirrored: set[str] = set()

    def add(self, name: str) -> None:
        """Register one of our datasets in Detectron2, unless it has one of that name."""
        if name in HostDatasets:
            return
        self._mirrored.add(name)
        HostDatasets.register(name, lambda: DatasetCatalog.get(name))
        HostMetadata[name] = MirroredMetadata(**HostMetadata.get(name).as_dict())

    def __contains__(self, name: str) -> bool:
        return name in HostDatasets and name not in self._mirrored

    def get(self, name: str) -> list[Record]:
        """Return the records of a dataset of Detectron2."""
        return HostDatasets.get(name)

    def facts(self, name: str) -> dict[str, Any]:
        """Return Detectron2's metadata of one of its own datasets; empty for one of ours."""
        return HostMetadata.get(name).as_dict() if name in self else {}


@functools.cache
def join_catalogs() -> None:
    """Add each side's datasets to the other side, also those that are registered later."""
    joined = JoinedCatalog()
    MetadataCatalog.join(joined)
    DatasetCatalog.join(joined)
