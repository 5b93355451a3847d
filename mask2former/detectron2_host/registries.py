"""Our builders in Detectron2's registries, under their published names, and its backbones under our head."""

import functools
from collections.abc import Iterator
from typing import Any

from detectron2.layers import ShapeSpec as HostShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
from detectron2.modeling import Backbone as HostBackbone

from mask2former import modeling  # noqa: F401  (registers all our builders)
from mask2former.detectron2_host.model import build_host_mask_former
from mask2former.modeling.backbone.base import Backbone
from mask2former.structures import ShapeSpec
from mask2former.utils.registry import BACKBONE, SEM_SEG_HEADS, Builder

MODEL = "MaskFormer"


class HostBackbones:
    """Detectron2's backbones, those of its users too, as builders of ours."""

    def __contains__(self, name: str) -> bool:
        return name in BACKBONE_REGISTRY

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(BACKBONE_REGISTRY)

    def get(self, name: str) -> Any:
        """The builder of that name; what it takes is Detectron2's."""
        build = BACKBONE_REGISTRY.get(name)

        def build_here(cfg: Any, shape: ShapeSpec) -> HostBackbone:
            return build(cfg, HostShapeSpec(channels=shape.channels, stride=shape.stride))

        return build_here


@functools.cache
def join_registries() -> None:
    """Register ours where Detectron2 has none of that name, and let our model find those of Detectron2.

    `build_resnet_backbone` is a name of both. In Detectron2's own models it stays Detectron2's; in ours it is
    ours, so that a model computes the same in both hosts.

    Raises:
        ValueError: another project's model has the name of ours.
    """
    if MODEL in META_ARCH_REGISTRY:
        other = META_ARCH_REGISTRY.get(MODEL)
        raise ValueError(
            f"Detectron2's META_ARCH registry has a '{MODEL}' already, {other.__module__}."
            f"{other.__qualname__}: no config could say which of the two it means, so only one of the two "
            "projects can be imported"
        )
    META_ARCH_REGISTRY._do_register(MODEL, build_host_mask_former)
    HostBackbone.register(Backbone)  # FPN and build_backbone ask for an instance of it
    for name, build in SEM_SEG_HEADS:
        if name not in SEM_SEG_HEADS_REGISTRY:
            SEM_SEG_HEADS_REGISTRY._do_register(name, build)
    for name, build in BACKBONE:
        if name not in BACKBONE_REGISTRY:
            BACKBONE_REGISTRY._do_register(name, _for_detectron2(build))
    BACKBONE.host, SEM_SEG_HEADS.host = HostBackbones(), SEM_SEG_HEADS_REGISTRY


def _for_detectron2(build: Builder) -> Any:
    """Our builder of a backbone, with what Detectron2's models ask of one: ours take images of any size."""

    def build_there(cfg: Any, shape: HostShapeSpec) -> Backbone:
        backbone = build(cfg, shape)
        backbone.size_divisibility, backbone.padding_constraints = 0, {}
        return backbone

    return build_there
