"""BEiT under UperNet's head against transformers' BeitForSemanticSegmentation with the same weights."""

import re

import pytest
import torch
from semantic_step import CLASSES, run_both_backward
from small_vits import draw, saved_tensors
from torch import nn
from torch.nn import functional as F

from mask2former.config import load_config
from mask2former.engine.build import build_model
from mask2former.weights.rename import translate

transformers = pytest.importorskip("transformers")

WIDTH, DEPTH, HEADS, SIDE = 16, 6, 2, 64
TAPPED = (0, 2, 3, 4)  # the last block is dropped, as transformers cannot tap it
SMALL = [
    *("MODEL.DEVICE", "cpu", "DATASETS.TRAIN", (), "DATASETS.TEST", (), "MODEL.MASK_FORMER.DROPOUT", 0.0),
    *("MODEL.VIT.EMBED_DIM", WIDTH, "MODEL.VIT.DEPTH", DEPTH, "MODEL.VIT.NUM_HEADS", HEADS),
    *("MODEL.VIT.POSITION_GRID", SIDE // 16, "MODEL.VIT.DROP_PATH_RATE", 0.0),
    *("MODEL.VIT_TAPS.BLOCKS", TAPPED, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", CLASSES),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", WIDTH, "MODEL.SEM_SEG_HEAD.MASK_DIM", WIDTH),
]
# Their names outside of the vision transformer, and ours
NAMES = {
    r"^fpn\.fpn1\.conv_transpose1": "backbone.neck.res2.0",
    r"^fpn\.fpn1\.normalization": "backbone.neck.res2.1",
    r"^fpn\.fpn1\.conv_transpose2": "backbone.neck.res2.3",
    r"^fpn\.fpn2": "backbone.neck.res3",
    r"^decode_head\.classifier": "sem_seg_head.predictor",
    r"^decode_head\.psp_modules\.blocks\.(\d)\.conv": r"sem_seg_head.pixel_decoder.psp_modules.\1.1",
    r"^decode_head\.psp_bottleneck": "sem_seg_head.pixel_decoder.bottleneck",
    r"^decode_head": "sem_seg_head.pixel_decoder",
    r"^auxiliary_head\.classifier": "sem_seg_head.auxiliary_head.conv_seg",
    r"^auxiliary_head": "sem_seg_head.auxiliary_head",
    r"\.convolution\.": ".",
    r"\.normalization\.": ".norm.",
}


def our_name(theirs):
    for pattern, ours in NAMES.items():
        theirs = re.sub(pattern, ours, theirs)
    return theirs


@pytest.fixture
def both(tmp_path):
    """Our model and theirs, with the same weights, which are drawn; in float64, as sums are long."""
    config = transformers.BeitConfig(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        patch_size=16,
        image_size=SIDE,
        layer_norm_eps=1e-6,
        use_relative_position_bias=True,
        drop_path_rate=0.0,
        out_indices=[block + 2 for block in TAPPED],  # counted from 1, and the first are the embeddings
        num_labels=CLASSES,
    )
    theirs = draw(transformers.BeitForSemanticSegmentation(config))
    generator = torch.Generator().manual_seed(1)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.5, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    _, tensors = translate(saved_tensors(theirs.beit, tmp_path))
    last = f"backbone.vit.blocks.{DEPTH - 1}."
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(last)}
    others = theirs.state_dict().items()
    tensors |= {our_name(name): tensor for name, tensor in others if not name.startswith("beit.")}
    ours = build_model(load_config("comparators/upernet/upernet_beit_large_bs8_320k_res640.yaml", SMALL))
    ours.load_state_dict(tensors)
    return ours.double(), theirs.double()


@torch.no_grad()
def test_scores_equal_those_of_transformers_at_another_size(both):
    ours, theirs = (model.eval() for model in both)
    images = torch.randint(256, (2, 3, 64, 96), dtype=torch.uint8)
    normalized = (images - ours.pixel_mean) / ours.pixel_std
    expected = theirs(normalized, interpolate_pos_encoding=True).logits
    expected = F.interpolate(expected, size=(64, 96), mode="bilinear", align_corners=False)
    found = torch.stack([result["sem_seg"] for result in ours([{"image": image} for image in images])])
    assert expected.std() > 0.1
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_the_loss_of_a_step_and_its_gradients_equal_those_of_transformers(both):
    ours, theirs = (model.train() for model in both)
    run_both_backward(ours, theirs, (SIDE, SIDE))
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    compared = [name for name, _ in theirs.named_parameters() if not name.startswith("beit.")]
    assert len(compared) > 40
    for name in compared:
        found, wanted = gradients[our_name(name)], theirs.get_parameter(name).grad
        scale = 1e-4 * float(wanted.abs().max())
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=scale + 1e-12)  # a bias before a norm has 0
