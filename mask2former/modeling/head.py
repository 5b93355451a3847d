"""The segmentation head: a pixel decoder followed by a transformer decoder.

Shapes: `B` images, `C` channels, `h, w` the sides of a map.
"""

from typing import Any

from torch import Tensor, nn

from mask2former.modeling.predictions import Predictions
from mask2former.modeling.transformer_decoder.pilots import TrainingTargets
from mask2former.structures import ShapeSpec
from mask2former.utils.registry import SEM_SEG_HEADS, TRANSFORMER_DECODER, find_builder

MEMORY, ENCODED, MASK_FEATURES = "multi_scale_pixel_decoder", "transformer_encoder", "pixel_embedding"


class MaskFormerHead(nn.Module):
    """Pixel decoder, and a transformer decoder, `predictor`, of its mask features and of other maps.

    Args:
        in_feature: what the transformer decoder reads: MEMORY, the pixel decoder's maps; ENCODED, the map of
            its encoder; MASK_FEATURES; or the name of a map of the backbone.
    """

    def __init__(self, *, pixel_decoder: nn.Module, predictor: nn.Module, in_feature: str = MEMORY) -> None:
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor
        self.in_feature = in_feature

    @property
    def reads_targets(self) -> bool:
        """Return True if the decoder is to be told the targets in training."""
        return getattr(self.predictor, "reads_targets", False)

    @property
    def trained_tasks(self) -> tuple[str, ...]:
        """Return the tasks that the decoder tells apart; none if its queries serve any."""
        return getattr(self.predictor, "trained_tasks", ())

    def forward(
        self,
        features: dict[str, Tensor],
        targets: TrainingTargets | None = None,
        tasks: Tensor | None = None,
    ) -> Predictions:
        """Predict from the backbone's maps (B, C, h, w) by name.

        `targets` and `tasks` are for a decoder that reads them.
        """
        mask_features, memory, *encoded = self.pixel_decoder(features)
        own = {MEMORY: memory, ENCODED: encoded, MASK_FEATURES: [mask_features]}
        memory = own.get(self.in_feature) or [features[self.in_feature]]
        told = {"targets": targets, "tasks": tasks}
        told = {name: value for name, value in told.items() if value is not None}
        return self.predictor(memory, mask_features, **told)


def build_pixel_decoder(cfg: Any, input_shape: dict[str, ShapeSpec]) -> Any:
    """Build the pixel decoder that the config names, for the backbone's maps `input_shape`.

    Raises:
        ValueError: it is not registered, or the backbone lacks a map.
    """
    maps = select_maps(cfg, input_shape)
    name = cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME
    build = find_builder(SEM_SEG_HEADS, name, "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME")
    return build(cfg, maps)


def select_maps(cfg: Any, input_shape: dict[str, ShapeSpec]) -> dict[str, ShapeSpec]:
    """Return those of the backbone's maps that the config names.

    Raises:
        ValueError: the backbone lacks one.
    """
    names = cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES
    missing = [name for name in names if name not in input_shape]
    if missing:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.IN_FEATURES has {missing}, but the backbone has {list(input_shape)}"
        )
    return {name: input_shape[name] for name in names}


def memory_shape(cfg: Any, pixel_decoder: Any, input_shape: dict[str, ShapeSpec]) -> list[ShapeSpec]:
    """Return the shapes of the maps that TRANSFORMER_IN_FEATURE names.

    Raises:
        ValueError: no part provides such maps.
    """
    name = cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE
    head = cfg.MODEL.SEM_SEG_HEAD
    finest = min(shape.stride for shape in input_shape.values())
    shapes = {
        MEMORY: pixel_decoder.memory_shape,
        MASK_FEATURES: [ShapeSpec(head.MASK_DIM, finest)],
        **{feature: [shape] for feature, shape in input_shape.items()},
    }
    if hasattr(pixel_decoder, "encoded_shape"):
        shapes[ENCODED] = [pixel_decoder.encoded_shape]
    if name not in shapes:
        raise ValueError(
            f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE is {name!r}; with "
            f"MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME {head.PIXEL_DECODER_NAME} it must be one of "
            f"{', '.join(shapes)}"
        )
    return shapes[name]


@SEM_SEG_HEADS.register_as("MaskFormerHead")
def build_mask_former_head(cfg: Any, input_shape: dict[str, ShapeSpec]) -> MaskFormerHead:
    """Build the head with the two decoders that the config names, for the backbone's maps `input_shape`.

    Raises:
        ValueError: a decoder is not registered, or no part provides a map that one of them reads.
    """
    decoder = cfg.MODEL.MASK_FORMER
    build_predictor = find_builder(
        TRANSFORMER_DECODER,
        decoder.TRANSFORMER_DECODER_NAME,
        "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME",
    )
    pixel_decoder = build_pixel_decoder(cfg, input_shape)
    return MaskFormerHead(
        pixel_decoder=pixel_decoder,
        predictor=build_predictor(cfg, memory_shape(cfg, pixel_decoder, input_shape)),
        in_feature=decoder.TRANSFORMER_IN_FEATURE,
    )
