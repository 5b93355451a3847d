"""DETR against transformers' DetrForSegmentation, with the same drawn weights: predictions and losses.

Losses are those of the last layer: with its option for all of them, transformers hands a layer the normed
output of the one before, unlike DETR's code.
"""

import re

import pytest
import torch
from small_detr import draw_inputs, small_detr

from mask2former.modeling.detr.boxes import boxes_of_masks

transformers = pytest.importorskip("transformers")

BACKBONE, DETECTOR = r"^detr\.model\.backbone\.model\.", r"^detr\.model\."
RENAMES = {  # their names -> ours; all rows that match apply, in order
    BACKBONE + r"embedder\.embedder\.convolution": "backbone.stem.conv1",
    BACKBONE + r"embedder\.embedder\.normalization": "backbone.stem.conv1.norm",
    BACKBONE + r"encoder\.stages\.(\d)\.layers\.(\d+)\.": r"backbone.res<\1+2>.\2.",
    r"\.layer\.(\d)\.convolution": r".conv<\1+1>",
    r"\.layer\.(\d)\.normalization": r".conv<\1+1>.norm",
    r"shortcut\.convolution": "shortcut",
    r"shortcut\.normalization": "shortcut.norm",
    DETECTOR + "query_position_embeddings": "sem_seg_head.query_embed",
    DETECTOR + "input_projection": "sem_seg_head.input_proj",
    DETECTOR + "decoder.layernorm": "sem_seg_head.transformer.decoder.norm",
    DETECTOR + "(encoder|decoder)": r"sem_seg_head.transformer.\1",
    r"\.self_attn\.([qkv])_proj\.": r".self_attn.in_proj_\1.",
    r"\.encoder_attn\.([qkv])_proj\.": r".multihead_attn.in_proj_\1.",
    r"encoder_attn\.o_proj": "multihead_attn.out_proj",
    r"self_attn\.o_proj": "self_attn.out_proj",
    "self_attn_layer_norm": "norm1",
    "encoder_attn_layer_norm": "norm2",
    r"(decoder\.layers\.\d\.)final_layer_norm": r"\1norm3",
    "final_layer_norm": "norm2",
    r"mlp\.fc": "linear",
    r"^detr\.class_labels_classifier": "sem_seg_head.class_embed",
    r"^detr\.bbox_predictor": "sem_seg_head.bbox_embed",
    r"^bbox_attention\.(\w)_proj": r"sem_seg_head.bbox_attention.\1_linear",
    r"^mask_head\.conv(\d)\.conv": r"sem_seg_head.mask_head.lay\1",
    r"^mask_head\.conv(\d)\.norm": r"sem_seg_head.mask_head.gn\1",
    r"^mask_head\.fpn_stages\.(\d)\.fpn_adapter": r"sem_seg_head.mask_head.adapter<\1+1>",
    r"^mask_head\.fpn_stages\.(\d)\.refine\.conv": r"sem_seg_head.mask_head.lay<\1+3>",
    r"^mask_head\.fpn_stages\.(\d)\.refine\.norm": r"sem_seg_head.mask_head.gn<\1+3>",
    r"^mask_head\.output_conv": "sem_seg_head.mask_head.out_lay",
}


def our_name(theirs):
    for pattern, ours in RENAMES.items():
        theirs = re.sub(pattern, ours, theirs)
    return re.sub(r"<(\d)\+(\d)>", lambda match: str(int(match[1]) + int(match[2])), theirs)


@torch.no_grad()
def copy_weights(ours, theirs):
    """Give their model our weights; every tensor of ours finds its place, and all of theirs are filled."""
    sources = ours.state_dict()
    left = sources.keys() - {"criterion.empty_weight"}
    for name, target in theirs.state_dict().items():
        source, _, part = our_name(name).partition("in_proj_")
        if part:  # they keep the projections apart that are one matrix here
            kind, _, end = part.partition(".")
            source += f"in_proj_{end}"
            target.copy_(sources[source].chunk(3)["qkv".index(kind)])
        else:
            target.copy_(sources[source])
        left.discard(source)
    assert not left


@pytest.fixture(scope="module")
def models():
    ours = small_detr()
    backbone = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[32, 64, 128, 256],
        depths=[3, 4, 6, 3],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        backbone_config=backbone,
        num_queries=6,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        d_model=128,
        num_labels=250,
    )
    theirs = transformers.DetrForSegmentation(config).eval()
    copy_weights(ours, theirs)
    return ours, theirs


SIZES = {
    "one image": [(96, 128)],
    "one image of odd sides": [(101, 75)],
    "images of different sizes": [(70, 133), (96, 80), (101, 64)],
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_predictions_and_losses_are_equal(models, sizes):
    ours, theirs = models
    inputs = draw_inputs(*sizes, objects=[3, 0, 2][: len(sizes)])
    images = ours._images(inputs)
    shown = torch.zeros(len(images), *images.shape[2:], dtype=torch.int64)
    labels = []
    for mask, item, size in zip(shown, inputs, sizes, strict=True):
        mask[: size[0], : size[1]] = 1
        target = item["instances"]
        labels.append(
            {
                "class_labels": ours.sem_seg_head.outputs[target.gt_classes],
                "boxes": boxes_of_masks(target.gt_masks),
                "masks": target.gt_masks,
            }
        )
    with torch.no_grad():
        expected = theirs(images, pixel_mask=shown, labels=labels)
        found = ours.network(images, sizes)
        losses = ours.losses(inputs)
    assert found.class_logits[-1].std() > 0.1 and expected.pred_masks.std() > 0.1
    torch.testing.assert_close(found.class_logits[-1], expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.boxes[-1], expected.pred_boxes, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.mask_logits(), expected.pred_masks, atol=1e-3, rtol=1e-3)
    for name, value in expected.loss_dict.items():
        if name.startswith("loss"):
            weight = {"bbox": 5, "giou": 2}.get(name.split("_")[1], 1)
            assert losses[name].item() == pytest.approx(weight * value.item(), rel=1e-4), name
    total = sum(value for name, value in losses.items() if not name[-1].isdigit())
    assert total.item() == pytest.approx(expected.loss.item(), rel=1e-4)
