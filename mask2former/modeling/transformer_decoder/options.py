"""Options of the masked transformer decoder, and how it reads a config."""

from dataclasses import dataclass
from typing import Any

from mask2former.modeling.transformer_decoder.memory_attention import ATTENTIONS


@dataclass(frozen=True)
class DecoderOptions:
    """Rows of the paper's ablations (Tables 4 and X); the fields are the keys of `MODEL.MASK_FORMER.DECODER`.

    The defaults are Mask2Former.

    Args:
        attention: one of `ATTENTIONS` (Table 4c).
        memory_stride: the one level that all layers attend to; 0: all levels (Table 4d).
        concatenate_levels: every layer attends to all levels at once, not to one of them in turn (Table 4d).
        fine_layers: so many last layers attend to the mask features, at stride 4, instead of the level whose
            turn it would be, for the sake of small objects (not of the paper); 0: none. Mask features are a
            linear function of the pixel decoder's finest map, and are projected for keys and values. At
            1024x1024 the published R50 model of COCO computes 14.5 G multiply-adds more for the first such
            layer, and 13 G for each further one, than 249 G. In training under autocast, an image takes
            138 MiB more, and 100 MiB for each further one: keys and values of 65,536 cells in half precision
            are 32 MiB each, and the mask of 100 queries is 12.5 MiB.
        learned_queries: query features are learned; otherwise they start from zero (Table 4b). Without them
            there is no prediction before the first layer, which attends to all cells: the paper states that
            such queries have no direct supervision, and leaves the rest open.
        supervise_queries: the prediction of the learned queries, before the first layer, is part of the
            result, and so of the loss; it directs the first layer in any case (Table X).
        self_attention_first: self-attention comes before attention to the memory, as in DETR (Table 4b).
        dropout: of attention weights, residual updates and inside of the feed-forward network (Table 4b).
        pilot_groups: in training, so many further queries for each target, which are told its class and mask
            (`pilots`); 0: none. Each group costs as much as so many queries as an image has targets.
            Prediction is unchanged; the embedding of classes is the only new weight.
        pilot_class_noise: probability with which a pilot is told a random class.
        pilot_mask_noise: probability with which a cell is changed, for a mask that fills the map.

    Raises:
        ValueError: the attention is unknown, or options contradict each other.
    """

    attention: str = "masked"
    memory_stride: int = 0
    concatenate_levels: bool = False
    fine_layers: int = 0
    learned_queries: bool = True
    supervise_queries: bool = True
    self_attention_first: bool = False
    dropout: float = 0.0
    pilot_groups: int = 0
    pilot_class_noise: float = 0.2
    pilot_mask_noise: float = 0.2

    def __post_init__(self) -> None:
        if self.attention not in ATTENTIONS:
            raise ValueError(
                f"MODEL.MASK_FORMER.DECODER.ATTENTION is {self.attention!r}; "
                f"it must be one of {', '.join(ATTENTIONS)}"
            )
        if self.concatenate_levels and self.memory_stride:
            raise ValueError(
                f"MODEL.MASK_FORMER.DECODER.MEMORY_STRIDE {self.memory_stride} leaves one level, "
                "so that CONCATENATE_LEVELS has nothing to concatenate"
            )

        if self.fine_layers and (self.memory_stride or self.concatenate_levels):
            raise ValueError(
                "MODEL.MASK_FORMER.DECODER.FINE_LAYERS is for layers that attend to levels in turn; "
                "MEMORY_STRIDE must be 0 and CONCATENATE_LEVELS False"
            )
        if self.pilot_groups and (self.attention != "masked" or not self.learned_queries):
            raise ValueError(
                "MODEL.MASK_FORMER.DECODER.PILOT_GROUPS needs ATTENTION masked and LEARNED_QUERIES True"
            )
        for key in ("pilot_class_noise", "pilot_mask_noise"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(
                    f"MODEL.MASK_FORMER.DECODER.{key.upper()} is {getattr(self, key)}; it must be in [0, 1]"
                )

    def levels(self, strides: list[int]) -> list[int]:
        """Return the indices of the memory's levels to attend to; raise ValueError if there is none."""
        if self.memory_stride and self.memory_stride not in strides:
            raise ValueError(
                f"MODEL.MASK_FORMER.DECODER.MEMORY_STRIDE is {self.memory_stride}, but the memory of "
                f"MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME has strides {strides}"
            )
        return [i for i, stride in enumerate(strides) if self.memory_stride in (0, stride)]

    def turns(self, num_levels: int, num_layers: int) -> list[int]:
        """Return the number of the level that each layer attends to; the mask features come after the others.

        Raises:
            ValueError: `fine_layers` leaves no layer for the memory.
        """
        if self.fine_layers and self.fine_layers >= num_layers:
            raise ValueError(
                f"MODEL.MASK_FORMER.DECODER.FINE_LAYERS is {self.fine_layers}; it must be less than the "
                f"{num_layers} layers, one less than MODEL.MASK_FORMER.DEC_LAYERS"
            )
        in_turn = 1 if self.concatenate_levels else num_levels
        coarse = [layer % in_turn for layer in range(num_layers - self.fine_layers)]
        return coarse + [num_levels] * self.fine_layers


PUBLISHED = DecoderOptions()


def decoder_options(cfg: Any) -> DecoderOptions:
    """Return the options of a config; raise ValueError as they do."""
    options = cfg.MODEL.MASK_FORMER.DECODER
    return DecoderOptions(
        attention=options.ATTENTION,
        memory_stride=options.MEMORY_STRIDE,
        concatenate_levels=options.CONCATENATE_LEVELS,
        fine_layers=options.FINE_LAYERS,
        learned_queries=options.LEARNED_QUERIES,
        supervise_queries=options.SUPERVISE_QUERIES,
        self_attention_first=options.SELF_ATTENTION_FIRST,
        dropout=options.DROPOUT,
        pilot_groups=options.PILOT_GROUPS,
        pilot_class_noise=options.PILOT_CLASS_NOISE,
        pilot_mask_noise=options.PILOT_MASK_NOISE,
    )


def check_counts(cfg: Any) -> None:
    """Raise ValueError if NUM_CLASSES, NUM_OBJECT_QUERIES or DEC_LAYERS is below 1."""
    head, decoder = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    counts = {
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": head.NUM_CLASSES,
        "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": decoder.NUM_OBJECT_QUERIES,
        "MODEL.MASK_FORMER.DEC_LAYERS": decoder.DEC_LAYERS,
    }
    for key, count in counts.items():
        if count < 1:
            raise ValueError(f"{key} is {count}; it must be at least 1")
