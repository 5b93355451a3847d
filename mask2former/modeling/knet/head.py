"""K-Net's head: pixel features, and kernels that three stages update ("K-Net", NeurIPS 2021).

A kernel is a 1x1 convolution to one mask. The first `N` kernels are for instances of any thing class; after
them each stuff class has its own.

Shapes: `B` images, `Q` kernels, `N` instance kernels, `K` classes, `C` channels, `h, w` the sides of the
features, at stride 8.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mask2former.modeling.head import select_maps
from mask2former.modeling.knet.predictions import KNetPredictions
from mask2former.modeling.knet.pyramid import CONV_STD, KernelPyramid, norm_conv
from mask2former.modeling.knet.update import FIRST_SCORE, KernelUpdateStage, logit
from mask2former.modeling.predictions import Prediction, multiply_masks
from mask2former.modeling.transformer_decoder.options import check_counts
from mask2former.modeling.transformer_decoder.standard import refuse_decoder_options
from mask2former.structures import ShapeSpec
from mask2former.utils.registry import SEM_SEG_HEADS


class KernelHead(nn.Module):
    """First kernels and their masks, then the update stages.

    Args:
        width: C, of features and kernels.
        num_kernels: N.
        thing_ids: the thing classes; each other class has a kernel of its own.
        norm: of the convolutions on the features.

    Raises:
        ValueError: the heads or the norm's groups do not divide the width.
    """

    allowed: Tensor
    stuff_ids: Tensor

    def __init__(
        self,
        *,
        width: int,
        num_classes: int,
        thing_ids: Sequence[int],
        num_kernels: int,
        num_stages: int,
        norm: str,
        **stage: int,
    ) -> None:
        super().__init__()
        self.loc_convs = nn.Sequential(norm_conv(width, 1, norm))
        self.seg_convs = nn.Sequential(norm_conv(width, 1, norm))
        self.init_kernels = nn.Conv2d(width, num_kernels, 1, bias=False)
        self.conv_seg = nn.Conv2d(width, num_classes, 1)
        nn.init.normal_(self.init_kernels.weight)
        nn.init.normal_(self.conv_seg.weight, std=CONV_STD)
        assert self.conv_seg.bias is not None
        nn.init.constant_(self.conv_seg.bias, logit(FIRST_SCORE))
        self.stages = nn.ModuleList(
            KernelUpdateStage(width=width, num_classes=num_classes, **stage) for _ in range(num_stages)
        )
        stuff_ids = [label for label in range(num_classes) if label not in thing_ids]
        own_class = torch.eye(num_classes, dtype=torch.bool)[stuff_ids]
        is_thing = ~own_class.any(0)
        allowed = torch.cat([is_thing.expand(num_kernels, -1), own_class])
        self.register_buffer("stuff_ids", torch.tensor(stuff_ids, dtype=torch.int64), persistent=False)
        self.register_buffer("allowed", allowed, persistent=False)

    def forward(self, features: list[Tensor]) -> KNetPredictions:
        """Predict from the instance and the semantic features, (B, C, h, w) each.

        From the first masks on everything is in float32: sums over a mask would exceed half precision.
        """
        instance_features = self.loc_convs(features[0])
        semantic_features = self.seg_convs(features[1])
        with torch.autocast(instance_features.device.type, enabled=False):
            return self._predict(instance_features.float(), semantic_features.float())

    def _predict(self, instance_features: Tensor, semantic_features: Tensor) -> KNetPredictions:
        x = instance_features + semantic_features
        first_masks = self.init_kernels(instance_features)
        seg_logits = self.conv_seg(semantic_features)
        masks = torch.cat([first_masks, seg_logits[:, self.stuff_ids]], 1).detach()
        kernels = self._first_kernels(first_masks, x)
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        layers: list[Prediction] = []
        for stage in self.stages:
            if layers:
                with torch.no_grad():  # masks select cells, which has no gradient
                    masks = multiply_masks(layers[-1].mask_embed, x)
            kernels, prediction = stage(kernels, masks, x)
            layers.append(prediction)
        return KNetPredictions(layers, x, first_masks, seg_logits, self.allowed)

    def _first_kernels(self, first_masks: Tensor, x: Tensor) -> Tensor:
        """Return kernels (B, Q, C); those of instances get the sum of x inside their masks added."""
        groups = (first_masks > 0).to(x.dtype).flatten(2) @ x.flatten(2).transpose(1, 2)
        stuff = self.conv_seg.weight[self.stuff_ids].flatten(1)
        return torch.cat([self.init_kernels.weight.flatten(1) + groups, stuff.expand(len(x), -1, -1)], 1)


class KNetHead(nn.Module):
    """Pyramid and kernels: `pixel_decoder` and `predictor`, as the parts of other heads are called."""

    def __init__(self, *, pixel_decoder: KernelPyramid, predictor: KernelHead) -> None:
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor

    def forward(self, features: dict[str, Tensor]) -> KNetPredictions:
        """Predict from the backbone's maps (B, C, h, w) by name."""
        return self.predictor(self.pixel_decoder(features))


HEAD, CRITERION_NAME = "KNetHead", "KNetCriterion"


def check_pair(cfg: Any) -> None:
    """Raise ValueError if the config has only one of K-Net's head and criterion."""
    head, criterion = cfg.MODEL.SEM_SEG_HEAD.NAME, cfg.MODEL.MASK_FORMER.CRITERION_NAME
    if (head == HEAD) != (criterion == CRITERION_NAME):
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.NAME {HEAD} and MODEL.MASK_FORMER.CRITERION_NAME {CRITERION_NAME} need each "
            f"other, but they are {head} and {criterion}"
        )


@SEM_SEG_HEADS.register_as(HEAD)
def build_knet_head(cfg: Any, input_shape: dict[str, ShapeSpec]) -> KNetHead:
    """Build the head of a config for the backbone's maps `input_shape`.

    Raises:
        ValueError: the criterion is another model's, there are options of another decoder, the backbone lacks
            a map, a number of classes, kernels or stages is below 1, or widths do not fit.
    """
    check_pair(cfg)
    refuse_decoder_options(cfg, "MODEL.SEM_SEG_HEAD.NAME", HEAD)
    check_counts(cfg)
    head, decoder = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    shared = {"width": head.CONVS_DIM, "norm": head.NORM}
    return KNetHead(
        pixel_decoder=KernelPyramid(input_shape=select_maps(cfg, input_shape), **shared),
        predictor=KernelHead(
            num_classes=head.NUM_CLASSES,
            thing_ids=decoder.THING_IDS,
            num_kernels=decoder.NUM_OBJECT_QUERIES,
            num_stages=decoder.DEC_LAYERS,
            num_heads=decoder.NHEADS,
            dim_feedforward=decoder.DIM_FEEDFORWARD,
            **shared,
        ),
    )
