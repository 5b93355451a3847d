"""Our builders in Detectron2's registries, under their published names, and its backbones under our head."""

import functools
from collections.abc import Iterator
from typing import Any

from detectron2.layers import ShapeSpec as HostShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
from detectron2.modeling import Backbone as HostBackbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from mask2former import modeling  # noqa: F401  (registers all our builders)
from mask2former.detectron2_host.model import HOST_CLASSES, build_host_model
from mask2former.detectron2_host.per_pixel import with_segmentor_interface
from mask2former.modeling.backbone.base import Backbone
from mask2former.utils.registry import BACKBONE, SEM_SEG_HEADS, Builder

SWIN_FPN = "build_swin_fpn_backbone"


class HostBackbones:
    """Detectron2's backbones, including those of its users, as builders for our head."""

    def __contains__(self, name: str) -> bool:
        return name in BACKBONE_REGISTRY

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(BACKBONE_REGISTRY)

    def get(self, name: str) -> Any:
        """Return a builder that takes our ShapeSpec."""
        build = BACKBONE_REGISTRY.get(name)
        return lambda cfg, shape: build(cfg, HostShapeSpec(channels=shape.channels, stride=shape.stride))


@functools.cache
def join_registries() -> None:
    """Register our builders in Detectron2, and let our model look up builders there.

    Both sides have a `build_resnet_backbone`. Detectron2's models use Detectron2's and our model uses ours,
    so that our model computes the same on both hosts.

    Raises:
        ValueError: another project has registered a model with a name of ours.
    """
    for name in HOST_CLASSES:
        if name in META_ARCH_REGISTRY:
            other = META_ARCH_REGISTRY.get(name)
            raise ValueError(
                f"Detectron2's META_ARCH registry already has a '{name}', {other.__module__}."
                f"{other.__qualname__}; a config could mean either, so import only one of the two projects"
            )
        META_ARCH_REGISTRY._do_register(name, build_host_model)
    HostBackbone.register(Backbone)  # FPN and build_backbone check for an instance of it
    for name, build in SEM_SEG_HEADS:
        if name not in SEM_SEG_HEADS_REGISTRY:
            SEM_SEG_HEADS_REGISTRY._do_register(name, _head_for_detectron2(build))
    for name, build in BACKBONE:
        if name not in BACKBONE_REGISTRY:
            BACKBONE_REGISTRY._do_register(name, _for_detectron2(build))
    if SWIN_FPN not in BACKBONE_REGISTRY:
        BACKBONE_REGISTRY._do_register(SWIN_FPN, build_swin_fpn_backbone)
    BACKBONE.host, SEM_SEG_HEADS.host = HostBackbones(), SEM_SEG_HEADS_REGISTRY


def _for_detectron2(build: Builder) -> Any:
    """Return a builder whose backbones have the attributes that Detectron2's models read."""

    def build_there(cfg: Any, shape: HostShapeSpec) -> Backbone:
        backbone = build(cfg, shape)
        backbone.size_divisibility, backbone.padding_constraints = 0, {}  # any image size
        return backbone

    return build_there


def build_swin_fpn_backbone(cfg: Any, input_shape: HostShapeSpec) -> FPN:
    """Build our Swin under Detectron2's pyramid, as its `build_resnet_fpn_backbone` does with its ResNet."""
    return FPN(
        bottom_up=BACKBONE_REGISTRY.get("D2SwinTransformer")(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def _head_for_detectron2(build: Builder) -> Any:
    """Return a builder of a head that Detectron2's models can call."""
    return lambda cfg, shape: with_segmentor_interface(build(cfg, shape), cfg)
