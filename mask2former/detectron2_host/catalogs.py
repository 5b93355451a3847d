"""The catalogs of both sides know each other's datasets.

Where both have a dataset of one name (COCO's, Cityscapes'), each side keeps its own: what belongs to
Detectron2 reads its records, what is ours reads ours.
"""

import functools
from typing import Any

from detectron2.data import DatasetCatalog as HostDatasets
from detectron2.data import MetadataCatalog as HostMetadata
from detectron2.data.catalog import Metadata

from mask2former.data import DatasetCatalog, MetadataCatalog
from mask2former.data.catalog import Record


class MirroredMetadata(Metadata):
    """Facts about one of our datasets; those not set here are looked up on our side when asked for."""

    def __getattr__(self, key: str) -> Any:
        ours = {} if key.startswith("__") else facts_there(self.name)
        return ours[key] if key in ours else super().__getattr__(key)

    def as_dict(self) -> dict[str, Any]:
        """All facts, as they are now."""
        return {**facts_there(self.name), **super().as_dict()}


def facts_there(name: str) -> dict[str, Any]:
    """Facts about a dataset of ours as Detectron2 reads them.

    Its Visualizer looks up a thing's name and color in `thing_classes` and `thing_colors` by the class id.
    So, where things do not come first among the classes, those lists are of all classes, as in Detectron2's
    own panoptic datasets.
    """
    facts = MetadataCatalog.get(name).as_dict()
    things = facts.get("thing_ids", [])
    if things == list(range(len(things))):
        return facts
    of_all = {f"thing_{kind}": f"stuff_{kind}" for kind in ("classes", "colors")}
    return {**facts, **{thing: facts[stuff] for thing, stuff in of_all.items() if stuff in facts}}


class JoinedCatalog:
    """Detectron2's catalogs as our side sees them; see `mask2former.data.catalog.HostCatalog`."""

    def __init__(self) -> None:
        self._mirrored: set[str] = set()

    def add(self, name: str) -> None:
        """Make our dataset known to Detectron2, unless it has one of that name."""
        if name in HostDatasets:
            return
        self._mirrored.add(name)
        HostDatasets.register(name, lambda: DatasetCatalog.get(name))
        set_there = HostMetadata.get(name).as_dict()
        HostMetadata[name] = MirroredMetadata(**set_there)

    def __contains__(self, name: str) -> bool:
        return name in HostDatasets and name not in self._mirrored

    def get(self, name: str) -> list[Record]:
        """The records of a dataset of Detectron2's."""
        return HostDatasets.get(name)

    def facts(self, name: str) -> dict[str, Any]:
        """What Detectron2 knows about a dataset of its own; nothing about ours."""
        return HostMetadata.get(name).as_dict() if name in self else {}


@functools.cache
def join_catalogs() -> None:
    """Make each side's datasets known to the other, those of later too."""
    joined = JoinedCatalog()
    MetadataCatalog.join(joined)
    DatasetCatalog.join(joined)
