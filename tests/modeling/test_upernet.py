"""UperNet against transformers' UperNet with the same weights, and the published parameter counts."""

import re

import pytest
import torch
from safetensors.torch import save_file
from semantic_step import run_both_backward
from torch import nn

from mask2former.config import load_config
from mask2former.engine.build import build_model
from mask2former.modeling.mask_former import mask_former_parts
from mask2former.weights.hub.names import SWIN, Names, Row
from mask2former.weights.hub.translate import to_hub

transformers = pytest.importorskip("transformers")

FOLDER = "comparators/upernet/"
TINY, SMALL, BASE, LARGE = (
    f"{FOLDER}upernet_swin_{name}.yaml"
    for name in (
        "tiny_bs16_160k",
        "small_bs16_160k",
        "base_IN21k_384_bs16_160k_res640",
        "large_IN21k_384_bs16_160k_res640",
    )
)
MILLIONS = {TINY: 60, SMALL: 81, BASE: 121, LARGE: 234}  # in Table 1 of the MaskFormer paper
SMALL_SWIN = [
    *("MODEL.DEVICE", "cpu", "DATASETS.TRAIN", (), "DATASETS.TEST", (), "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5),
    *("MODEL.SWIN.EMBED_DIM", 12, "MODEL.SWIN.DEPTHS", [1, 1, 2, 1], "MODEL.SWIN.WINDOW_SIZE", 3),
    *("MODEL.SWIN.DROP_PATH_RATE", 0.0, "MODEL.MASK_FORMER.DROPOUT", 0.0),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", 16, "MODEL.SEM_SEG_HEAD.MASK_DIM", 16),
]

BACKBONE = Names(
    (
        *(Row(f"backbone.{theirs}", f"backbone.{ours}") for theirs, ours in SWIN),
        *(Row(f"backbone.hidden_states_norms.stage{i + 1}.*", f"backbone.norm{i}.*") for i in range(4)),
    ),
    unused="backbone.swin.layernorm.",
    last_norm="backbone.hidden_states_norms.stage4.",
)
HEADS = {
    r"decode_head\.classifier": "sem_seg_head.predictor",
    r"decode_head\.": "sem_seg_head.pixel_decoder.",
    r"auxiliary_head\.classifier": "sem_seg_head.auxiliary_head.conv_seg",
    r"^auxiliary_head\.": "sem_seg_head.auxiliary_head.",
    r"(head.*)\.conv\.": r"\1.",
    "batch_norm": "norm",
}


def our_head_name(theirs):
    for pattern, ours in HEADS.items():
        theirs = re.sub(pattern, ours, theirs)
    return theirs


def transformers_model(cfg):
    swin = transformers.SwinConfig(
        embed_dim=cfg.MODEL.SWIN.EMBED_DIM,
        depths=list(cfg.MODEL.SWIN.DEPTHS),
        num_heads=list(cfg.MODEL.SWIN.NUM_HEADS),
        window_size=cfg.MODEL.SWIN.WINDOW_SIZE,
        drop_path_rate=cfg.MODEL.SWIN.DROP_PATH_RATE,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    head = cfg.MODEL.SEM_SEG_HEAD
    config = transformers.UperNetConfig(
        backbone_config=swin,
        hidden_size=head.CONVS_DIM,
        num_labels=head.NUM_CLASSES,
        auxiliary_in_channels=None,
    )
    return transformers.UperNetForSemanticSegmentation(config)


def with_weights_of(ours, theirs, folder):
    """Return their model with the weights of ours, by way of a file, whose names transformers translates."""
    ours = {name: x for name, x in ours.state_dict().items() if not name.startswith("pixel_")}
    weights = to_hub({name: x for name, x in ours.items() if name.startswith("backbone.")}, BACKBONE)
    heads = {name: our_head_name(name) for name in theirs.state_dict() if "head" in name}
    assert sorted(heads.values()) == sorted(name for name in ours if not name.startswith("backbone."))
    weights |= {name: ours[source].clone() for name, source in heads.items()}
    theirs.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    loaded, info = type(theirs).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return loaded


@pytest.fixture
def both(tmp_path):
    """Our model and theirs, with the same weights, which are drawn."""
    torch.manual_seed(0)
    cfg = load_config(TINY, SMALL_SWIN)
    ours, theirs = build_model(cfg), transformers_model(cfg)
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
        for parameter in module.parameters(recurse=False):
            nn.init.normal_(parameter, mean=float(isinstance(module, nn.BatchNorm2d)), std=0.3)
    return ours, with_weights_of(ours, theirs, tmp_path)


def inputs_of(images, **more):
    return [{"image": image, **more} for image in images]


def test_scores_equal_those_of_transformers(both):
    ours, theirs = (model.eval() for model in both)
    images = torch.randint(256, (2, 3, 96, 132), dtype=torch.uint8)
    expected = theirs((images - ours.pixel_mean) / ours.pixel_std).logits
    found = torch.stack([result["sem_seg"] for result in ours(inputs_of(images))])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_loss_of_a_step_and_its_gradients_equal_those_of_transformers(both):
    """In float64, where rounding switches no ReLU; of two images, batch norm would leave signs alone."""
    ours, theirs = (model.train().double() for model in both)
    run_both_backward(ours, theirs, (96, 128))
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    heads = [name for name, _ in theirs.named_parameters() if "head" in name]
    assert heads
    for name in heads:
        found, wanted = gradients[our_head_name(name)], theirs.get_parameter(name).grad
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("config", MILLIONS)
def test_parameter_counts_equal_transformers_and_the_published_ones(config):
    with torch.device("meta"):
        cfg = load_config(config)
        ours, theirs = mask_former_parts(cfg), transformers_model(cfg)
    count = sum(p.numel() for part in ("backbone", "sem_seg_head") for p in ours[part].parameters())
    used = (p.numel() for name, p in theirs.named_parameters() if "swin.layernorm." not in name)
    assert count == sum(used)
    assert round(count / 1e6) == MILLIONS[config]
