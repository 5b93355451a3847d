"""Folders between this project and transformers itself: the same logits, and the same classes."""

import json

import pytest
import torch
from hub_folders import class_and_mask_logits, randomize, save_small_checkpoint
from PIL import Image
from safetensors.torch import load_file
from tiny_checkpoint import NAMES

from mask2former.predictor import Predictor
from mask2former.tools.convert import main
from mask2former.weights.hub.folder import CONFIG, SAFETENSORS

transformers = pytest.importorskip("transformers")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-7}
SIZE = (96, 160)  # not a multiple of Swin's window of four patches


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def processor_class():
    """Their processor that does without torchvision."""
    from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

    return Mask2FormerImageProcessorPil


def open_in_transformers(folder):
    """Return their model of a folder, which must have every tensor and no other."""
    kind = json.loads((folder / CONFIG).read_text())["architectures"][0]
    model, report = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def same_logits(ours, theirs):
    """Compare with the largest logit as the unit, MaskFormer in float64, which its random weights need.

    Our deformable attention is float32.
    """
    kind = torch.float64 if theirs.config.model_type == "maskformer" else torch.float32
    images = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0), dtype=kind)
    with torch.no_grad():
        output = theirs.to(kind)(pixel_values=images)
    expected = output.class_queries_logits, output.masks_queries_logits
    for mine, other in zip(class_and_mask_logits(ours.to(kind), images), expected, strict=True):
        assert mine.shape == other.shape
        assert float(other.std()) > 0.05
        assert float((mine - other).abs().max()) <= TOLERANCE[kind] * max(1, float(other.abs().max()))


VARIANTS = {
    "swin": ("swin", {}),
    "basic blocks": ("resnet", {}),
    "bottlenecks, stride in the first": (
        "resnet",
        {
            "MODEL.RESNETS.DEPTH": 50,
            "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
            "MODEL.RESNETS.STRIDE_IN_1X1": True,
            "MODEL.RESNETS.NORM": "BN",
        },
    ),
    "MaskFormer on Swin": ("maskformer, swin", {}),
    "MaskFormer on ResNet": ("maskformer, resnet", {}),
    "norms before attention, projections": (
        "swin",
        {"MODEL.MASK_FORMER.PRE_NORM": True, "MODEL.MASK_FORMER.HIDDEN_DIM": 64},
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_transformers_computes_the_same_from_our_folder(tmp_path, variant):
    backbone, values = VARIANTS[variant]
    path = save_small_checkpoint(tmp_path / "model.pth", backbone, **values)
    assert main([str(path), str(tmp_path / "folder")]) == 0
    same_logits(Predictor(path).model, open_in_transformers(tmp_path / "folder"))


def their_backbone(backbone):
    stages = ["stage1", "stage2", "stage3", "stage4"]
    if backbone == "swin":
        return transformers.SwinConfig(
            embed_dim=12, depths=[1, 2, 1, 1], num_heads=[1, 2, 3, 4], window_size=4, out_features=stages
        )
    return transformers.ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 32, 64, 128],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        out_features=stages,
    )


def their_maskformer(backbone):
    decoder = transformers.DetrConfig(
        d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=48, num_queries=7
    )
    torch.manual_seed(0)
    config = transformers.MaskFormerConfig(
        backbone_config=their_backbone(backbone),
        decoder_config=decoder,
        fpn_feature_size=32,
        mask_feature_size=64,
        id2label=dict(enumerate(NAMES)),
    )
    return randomize(transformers.MaskFormerForInstanceSegmentation(config)).eval()


def their_model(backbone):
    torch.manual_seed(0)
    return randomize(
        transformers.Mask2FormerForUniversalSegmentation(
            transformers.Mask2FormerConfig(
                backbone_config=their_backbone(backbone),
                feature_size=32,
                mask_feature_size=64,
                hidden_dim=32,
                encoder_feedforward_dim=48,
                dim_feedforward=64,
                encoder_layers=2,
                decoder_layers=5,
                num_attention_heads=4,
                num_queries=7,
                id2label=dict(enumerate(NAMES)),
            )
        )
    ).eval()


@pytest.mark.parametrize("backbone", ["swin", "resnet"])
@pytest.mark.parametrize("build", [their_model, their_maskformer])
def test_we_compute_the_same_from_a_folder_of_transformers_and_give_it_back(tmp_path, build, backbone):
    folder, path, again = tmp_path / "theirs", tmp_path / "model.pth", tmp_path / "again"
    theirs = build(backbone)
    theirs.save_pretrained(folder)
    processor_class()(size={"height": 96, "width": 160}).save_pretrained(folder)
    assert main([str(folder), str(path)]) == main([str(path), str(again)]) == 0
    for source in (folder, path):
        same_logits(Predictor(source).model, theirs)
    before, after = (load_file(file / SAFETENSORS) for file in (folder, again))
    assert before.keys() == after.keys()
    read = [
        name
        for name in before
        if ".encoder.swin.layernorm" not in name and ".encoder.model.layernorm" not in name
    ]
    assert len(before) - len(read) == (2 if backbone == "swin" else 0)
    assert all(torch.equal(before[name], after[name]) for name in read)
    config = json.loads((again / CONFIG).read_text())
    del config["mask2former"]
    assert config == json.loads((folder / CONFIG).read_text())


def test_shards_of_transformers_are_read(tmp_path):
    theirs = their_model("swin")
    theirs.save_pretrained(tmp_path, max_shard_size="500KB")
    assert not (tmp_path / SAFETENSORS).exists()
    same_logits(Predictor(tmp_path).model, theirs)


def test_our_key_survives_transformers(tmp_path):
    """Their config keeps it when the folder is loaded and saved, so that things and thresholds stay."""
    path = save_small_checkpoint(tmp_path / "model.pth", "swin")
    assert main([str(path), str(tmp_path / "folder")]) == 0
    open_in_transformers(tmp_path / "folder").save_pretrained(tmp_path / "saved")
    processor_class().from_pretrained(tmp_path / "folder").save_pretrained(tmp_path / "saved")
    assert main([str(tmp_path / "saved"), str(tmp_path / "again.pth")]) == 0
    before, after = (torch.load(tmp_path / name, weights_only=True) for name in ("model.pth", "again.pth"))
    assert (before["config"], before["metadata"]) == (after["config"], after["metadata"])


def test_the_pipeline_names_the_classes(tmp_path):
    path = save_small_checkpoint(tmp_path / "model.pth", "swin")
    assert main([str(path), str(tmp_path / "folder")]) == 0
    segmenter = transformers.pipeline(
        "image-segmentation",
        model=str(tmp_path / "folder"),
        image_processor=processor_class().from_pretrained(tmp_path / "folder"),
    )
    pixels = torch.randint(0, 256, (64, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = Image.fromarray(pixels.numpy())
    found = segmenter(image, subtask="semantic")
    ours = Predictor(path)(image).semantic
    assert {segment["label"] for segment in found} <= set(NAMES)
    largest = max(found, key=lambda segment: sum(segment["mask"].histogram()[1:]))
    assert largest["label"] == NAMES[int(torch.from_numpy(ours).flatten().mode().values)]
