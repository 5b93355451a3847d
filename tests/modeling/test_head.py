"""The head as a whole: one traced graph, and errors."""

import pytest
import torch

import mask2former.modeling  # noqa: F401  (registers all parts)
from mask2former.config import load_config
from mask2former.structures import ShapeSpec
from mask2former.utils.registry import BACKBONE, SEM_SEG_HEADS

SMALL = (
    "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32, "MODEL.SEM_SEG_HEAD.MASK_DIM", 16, "MODEL.MASK_FORMER.HIDDEN_DIM", 32,
    "MODEL.MASK_FORMER.NHEADS", 2, "MODEL.MASK_FORMER.DEC_LAYERS", 4,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 1, "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 5,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD", 16,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_DIM_FEEDFORWARD", 16, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3,
)  # fmt: skip
BASE = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"


def build_head(opts, input_shape=None):
    cfg = load_config(BASE, list(opts))
    if input_shape is None:
        input_shape = BACKBONE.get(cfg.MODEL.BACKBONE.NAME)(cfg, ShapeSpec(3)).output_shape()
    return SEM_SEG_HEADS.get(cfg.MODEL.SEM_SEG_HEAD.NAME)(cfg, input_shape)


def small_head_and_features():
    shapes = {f"res{i}": ShapeSpec(4 * i, 2**i) for i in (2, 3, 4, 5)}
    torch.manual_seed(0)
    features = {n: torch.randn(2, s.channels, 64 // s.stride, 96 // s.stride) for n, s in shapes.items()}
    return build_head(SMALL, shapes), features


def test_dec_layers_counts_predictions():
    head, features = small_head_and_features()
    assert len(head.predictor.transformer_ffn_layers) == 3
    assert len(head(features).layers) == 4


def test_one_graph_without_breaks():
    head, features = small_head_and_features()
    compiled = torch.compile(head, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(features).mask_logits(), head(features).mask_logits())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SEM_SEG_HEAD.PIXEL_DECODER_NAME", "FPN", "PIXEL_DECODER_NAME is 'FPN', which is not registered"),
        ("MASK_FORMER.TRANSFORMER_DECODER_NAME", "X", "TRANSFORMER_DECODER_NAME is 'X', which is not"),
        ("SEM_SEG_HEAD.IN_FEATURES", ["res2", "p6"], r"IN_FEATURES has \['p6'\], but the backbone has"),
        ("MASK_FORMER.DEC_LAYERS", 0, "DEC_LAYERS is 0; it must be at least 1"),
        ("MASK_FORMER.NUM_OBJECT_QUERIES", 0, "NUM_OBJECT_QUERIES is 0"),
        ("SEM_SEG_HEAD.NUM_CLASSES", -1, "NUM_CLASSES is -1"),
        ("SEM_SEG_HEAD.CONVS_DIM", 48, "32 groups, which do not divide 48"),
    ],
)
def test_wrong_values_are_refused(key, value, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build_head([f"MODEL.{key}", value])
