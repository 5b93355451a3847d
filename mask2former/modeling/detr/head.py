"""DETR's head: a transformer over the backbone's coarsest map, class and box of each query, and masks.

Sections 3.2 and 4.4 of "End-to-End Object Detection with Transformers" (ECCV 2020). Parameters are named as
in the authors' checkpoints, but for the prefix `sem_seg_head`.

Shapes: `B` images, `Q` queries, `K` classes, `O` outputs of the class head besides "no object", `C` channels,
`S` cells of the coarsest map, `h, w` the sides of a map, `H, W` those of the padded image.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mask2former.modeling.detr.mask_head import MaskHeadSmallConv, MaskSource, MHAttentionMap
from mask2former.modeling.detr.options import HEAD, check_architecture, class_outputs, reads_masks
from mask2former.modeling.detr.padding import Size, lay_out_cells
from mask2former.modeling.detr.predictions import DetrPredictions
from mask2former.modeling.layers.mlp import MLP
from mask2former.modeling.layers.norm import freeze
from mask2former.modeling.transformer_decoder.options import check_counts
from mask2former.modeling.transformer_decoder.standard import DetrTransformer, refuse_decoder_options
from mask2former.structures import ShapeSpec
from mask2former.utils.registry import SEM_SEG_HEADS

MAPS = 4  # that the mask head reads
MASK_PARTS = ("bbox_attention", "mask_head")


class DetrHead(nn.Module):
    """Transformer, class and box heads, and the mask head of the second stage.

    Args:
        in_features: names of the backbone's maps, finest first, with their channels.
        outputs: the class head's output of each class, distinct, below `num_outputs`.
        num_outputs: O.
        with_masks: build the mask head.
        transformer: further arguments of `DetrTransformer`.

    Raises:
        ValueError: the heads do not divide the width, or widths do not suit the mask head.
    """

    outputs: Tensor

    def __init__(
        self,
        *,
        in_features: dict[str, int],
        outputs: Sequence[int],
        num_outputs: int,
        hidden_dim: int,
        num_heads: int,
        num_queries: int,
        with_masks: bool,
        **transformer: Any,
    ) -> None:
        super().__init__()
        *finer, coarsest = in_features.values()
        self.in_features = list(in_features)
        self.transformer = DetrTransformer(width=hidden_dim, num_heads=num_heads, **transformer)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.input_proj = nn.Conv2d(coarsest, hidden_dim, 1)
        self.class_embed = nn.Linear(hidden_dim, num_outputs + 1)
        self.bbox_embed = MLP(hidden_dim, hidden_dim, hidden_dim, 4)
        self.register_buffer("outputs", torch.tensor([*outputs, num_outputs]), persistent=False)
        self.bbox_attention: MHAttentionMap | None = None
        self.mask_head: MaskHeadSmallConv | None = None
        if with_masks:
            self.bbox_attention = MHAttentionMap(hidden_dim, num_heads)
            self.mask_head = MaskHeadSmallConv(
                width=hidden_dim, num_heads=num_heads, map_channels=finer[::-1]
            )

    def forward(
        self, features: dict[str, Tensor], padded_size: Size, sizes: Sequence[Size]
    ) -> DetrPredictions:
        """Predict from the backbone's maps (B, C, h, w) by name, of images of `sizes` padded to (H, W)."""
        *finer, coarsest = (features[name] for name in self.in_features)
        x = self.input_proj(coarsest)
        shape = (x.shape[2], x.shape[3])
        position, blocked = lay_out_cells(sizes, padded_size, shape, x.shape[1], x.device)
        cells = self.transformer.encoder(x.flatten(2).transpose(1, 2), position, blocked)
        places = self.query_embed.weight
        start = torch.zeros_like(places).expand(len(cells), -1, -1)
        queries = torch.stack(self.transformer.decoder(start, places, cells + position, cells, blocked))
        source = None
        if self.bbox_attention is not None and self.mask_head is not None:
            source = MaskSource(self.bbox_attention, self.mask_head, x, cells, finer[::-1], blocked)
        return DetrPredictions(
            class_logits=self.class_embed(queries),
            boxes=self.bbox_embed(queries).sigmoid(),
            queries=queries,
            outputs=self.outputs,
            sizes=sizes,
            padded_size=padded_size,
            source=source,
        )

    def freeze_detector(self) -> None:
        """Stop the training of all parts but those of the mask head."""
        for name, part in self.named_children():
            if name not in MASK_PARTS:
                freeze(part)


def read_maps(cfg: Any, input_shape: dict[str, ShapeSpec]) -> dict[str, int]:
    """Return names and channels of the maps of IN_FEATURES; raise ValueError if the mask head lacks one."""
    names = cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES
    missing = [name for name in names if name not in input_shape]
    strides = [input_shape[name].stride for name in names if name in input_shape]
    if missing or len(names) != MAPS or strides != sorted(strides):
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.IN_FEATURES is {list(names)}; MODEL.SEM_SEG_HEAD.NAME {HEAD} reads {MAPS} "
            f"maps, finest first, of the backbone's {', '.join(input_shape)}"
        )
    return {name: input_shape[name].channels for name in names}


@SEM_SEG_HEADS.register_as(HEAD)
def build_detr_head(cfg: Any, input_shape: dict[str, ShapeSpec]) -> DetrHead:
    """Build the head of a config for the backbone's maps `input_shape`.

    Raises:
        ValueError: a value that is not supported, with its key.
    """
    decoder = cfg.MODEL.MASK_FORMER
    check_architecture(cfg, f"MODEL.SEM_SEG_HEAD.NAME {HEAD}")
    check_counts(cfg)
    refuse_decoder_options(cfg, "MODEL.SEM_SEG_HEAD.NAME", HEAD)
    outputs, num_outputs = class_outputs(cfg)
    return DetrHead(
        in_features=read_maps(cfg, input_shape),
        outputs=outputs,
        num_outputs=num_outputs,
        hidden_dim=decoder.HIDDEN_DIM,
        num_heads=decoder.NHEADS,
        num_queries=decoder.NUM_OBJECT_QUERIES,
        with_masks=reads_masks(cfg),
        num_encoder_layers=decoder.ENC_LAYERS,
        num_decoder_layers=decoder.DEC_LAYERS,
        dim_feedforward=decoder.DIM_FEEDFORWARD,
        dropout=decoder.DROPOUT,
        pre_norm=decoder.PRE_NORM,
        activation_checkpointing=cfg.MODEL.ACTIVATION_CHECKPOINTING,
    )
