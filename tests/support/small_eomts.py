"""Small EoMT models with drawn weights: transformers' and ours, which read them from its file."""

import pytest
from small_vits import draw, saved_tensors

from mask2former.modeling.eomt.backbone import EomtBackbone
from mask2former.modeling.eomt.head import EomtHead
from mask2former.modeling.eomt.model import Eomt
from mask2former.modeling.loss.criterion import SetCriterion
from mask2former.modeling.postprocessing.inference import InferenceOptions
from mask2former.modeling.vit.transformer import VisionTransformer
from mask2former.weights.rename import translate

CLASSES, QUERIES, BLOCKS, DEPTH, WIDTH, POINTS = 3, 5, 2, 3, 32, 64
SHARED = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 2,
    "patch_size": 16,
    "num_queries": QUERIES,
    "num_blocks": BLOCKS,
    "num_labels": CLASSES,
    "train_num_points": POINTS,
}
# Names of transformers' model, its arguments, and ours
KINDS = {
    "dinov2": ("Eomt", {"mlp_ratio": 2}, {}),
    "dinov2-gated": ("Eomt", {"mlp_ratio": 2, "use_swiglu_ffn": True}, {"ffn": "swiglu"}),
    "dinov3": (
        "EomtDinov3",
        {
            "intermediate_size": 2 * WIDTH,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
            "pos_embed_rescale": None,  # random in training
        },
        {"positions": "rotary", "key_bias": False},
    ),
}


def theirs(kind, side=64, masked=True):
    """Return transformers' model with drawn weights for images of `side` pixels, or skip the test."""
    transformers = pytest.importorskip("transformers")
    name, arguments, _ = KINDS[kind]
    config = getattr(transformers, f"{name}Config")(**SHARED, **arguments, image_size=side)
    model = draw(getattr(transformers, f"{name}ForUniversalSegmentation")(config).eval())
    model.attn_mask_probs.fill_(float(masked))
    return model


def small_eomt(kind="dinov2", side=64, squares="pad", tasks=("semantic",), **changes):
    """Return our model of the same kind, with its own initial weights."""
    vit = VisionTransformer(
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=2,
        mlp_ratio=2.0,
        **{"position_grid": side // 16, **KINDS[kind][2], **changes},
    )
    return Eomt(
        squares=squares,
        backbone=EomtBackbone(vit, first_blocks=DEPTH - BLOCKS),
        sem_seg_head=EomtHead(
            width=WIDTH,
            num_classes=CLASSES,
            num_queries=QUERIES,
            num_blocks=BLOCKS,
            patch_size=vit.patch_size,
        ),
        criterion=SetCriterion(
            num_classes=CLASSES,
            class_weight=2.0,
            mask_weight=5.0,
            dice_weight=5.0,
            no_object_weight=0.1,
            num_points=POINTS,
            oversample_ratio=3.0,
            importance_sample_ratio=0.75,
        ),
        inference=InferenceOptions(tasks=tasks),
        num_classes=CLASSES,
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
        size_divisibility=16,
    ).eval()


def load_theirs(model, oracle, folder):
    """Load the file that transformers saves into our model, through the tables of names."""
    scheme, tensors = translate(saved_tensors(oracle, folder))
    assert scheme.title == "EoMT checkpoint (transformers' names)"
    model.load_state_dict(tensors)
    return model
