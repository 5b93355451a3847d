"""One model in both hosts: equal bit for bit, with weights from Detectron2's checkpointer."""

import pickle

import cv2
import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from tiny_runs import EOMT, random_sample

import mask2former
from mask2former.detectron2_host import instances_to_detectron2

SWIN = {
    "MODEL__BACKBONE__NAME": "D2SwinTransformer",
    "MODEL__SWIN__EMBED_DIM": 12,
    "MODEL__SWIN__DEPTHS": [1, 1, 2, 1],
}


JOINT = {"SOLVER__TASKS": ["semantic", "instance", "panoptic"]}


@pytest.fixture(params=[{}, SWIN, JOINT], ids=["ResNet", "Swin", "joint"])
def models(request, our_cfg, host_cfg):
    """Build our model in the standalone host and in Detectron2, with the same weights."""
    torch.manual_seed(0)
    ours, theirs = mask2former.build_model(our_cfg(**request.param)), build_model(host_cfg(**request.param))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


of_all_kinds = pytest.mark.parametrize(
    "models", [{}, SWIN, JOINT, EOMT], ids=["ResNet", "Swin", "joint", "EoMT"], indirect=True
)


@of_all_kinds
def test_results_are_equal_bit_for_bit(models):
    ours, theirs = models
    inputs = [{**random_sample(1, 0), "height": 100, "width": 90}, random_sample(2, 0, side=40)]
    for mine, other in zip(ours.eval()(inputs), theirs.eval()(inputs), strict=True):
        assert mine.keys() == other.keys() == {"sem_seg", "panoptic_seg", "instances"}
        assert torch.equal(mine["sem_seg"], other["sem_seg"])
        assert torch.equal(mine["panoptic_seg"][0], other["panoptic_seg"][0])
        assert mine["panoptic_seg"][1] == other["panoptic_seg"][1] != []
        assert len(mine["instances"]) == len(other["instances"]) > 0
        for name, field in mine["instances"].get_fields().items():
            field = field.dense() if hasattr(field, "dense") else field
            found = other["instances"].get(name)
            assert torch.equal(field, getattr(found, "tensor", found)), name


@of_all_kinds
def test_losses_and_gradients_are_equal_bit_for_bit(models):
    samples = [{**random_sample(1, 3), "task": "semantic"}, {**random_sample(2, 0), "task": "instance"}]
    converted = [{**s, "instances": instances_to_detectron2(s["instances"])} for s in samples]
    losses = []
    for model, batch in zip(models, (samples, converted), strict=True):
        torch.manual_seed(7)
        losses.append(model(batch))
        sum(losses[-1].values()).backward()
    mine, other = ({name: loss.item() for name, loss in of_host.items()} for of_host in losses)
    assert mine == other
    ours, theirs = models
    for (name, one), two in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None)
        assert one.grad is None or torch.equal(one.grad, two.grad), name


def test_detectron2s_predictor_gives_the_results_of_ours(our_cfg, host_cfg, tmp_path):
    cfg, weights = our_cfg(MODEL__WEIGHTS=str(tmp_path / "model.pth")), tmp_path / "model.pth"
    torch.manual_seed(0)
    torch.save({"model": mask2former.build_model(cfg).state_dict()}, weights)
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "image.png"), image[:, :, ::-1])
    ours = mask2former.Predictor(cfg, score_threshold=0.0)(str(tmp_path / "image.png"))
    theirs = DefaultPredictor(host_cfg(MODEL__WEIGHTS=str(weights)))(image[:, :, ::-1])
    assert np.array_equal(ours.semantic, theirs["sem_seg"].argmax(0).numpy())
    assert np.array_equal(ours.panoptic.ids, theirs["panoptic_seg"][0].numpy())


def check_loaded(file, content, model, expected):
    """Assert that Detectron2's checkpointer reads a file of `content` as the state dict `expected`."""
    torch.save(content, file) if file.suffix == ".pth" else file.write_bytes(pickle.dumps(content))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    DetectionCheckpointer(model).load(str(file))
    found = model.state_dict()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


def test_the_checkpointer_reads_a_backbone_of_the_zoo(models, tmp_path):
    ours, theirs = models
    expected = {name: v for name, v in ours.state_dict().items() if name.startswith("backbone.")}
    # Files of the zoo have names without `backbone.`, and a classifier on top.
    arrays = {name.removeprefix("backbone."): value.numpy() for name, value in expected.items()}
    arrays["stem.fc.weight"] = np.zeros((10, 8), np.float32)
    content = {"model": arrays, "__author__": "the zoo", "matching_heuristics": True}
    check_loaded(tmp_path / "backbone.pkl", content, theirs, expected)


CAFFE2 = {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c", "shortcut": "branch1"}
CAFFE2_ENDS = {"weight": "_w", "norm.weight": "_bn_s", "norm.bias": "_bn_b"}


def caffe2_name(name):
    """Return the name of a ResNet's parameter in the zoo's oldest files; None for those that they lack."""
    place, end = name.split(".norm.") if ".norm." in name else name.rsplit(".", 1)
    end = f"norm.{end}" if ".norm." in name else end
    if end not in CAFFE2_ENDS:
        return None
    if place == "stem.conv1":
        return "conv1_w" if end == "weight" else f"res_conv1{CAFFE2_ENDS[end]}"
    stage, block, conv = place.split(".")
    return f"{stage}_{block}_{CAFFE2[conv]}{CAFFE2_ENDS[end]}"


def test_the_checkpointer_reads_the_zoos_oldest_files(host_cfg, tmp_path):
    cfg = host_cfg(MODEL__RESNETS__DEPTH=50, MODEL__RESNETS__RES2_OUT_CHANNELS=16)
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4
    model = build_model(cfg)
    expected = {k: torch.rand_like(v) for k, v in model.backbone.state_dict().items() if caffe2_name(k)}
    blobs = {caffe2_name(name): value.numpy() for name, value in expected.items()}
    assert {"conv1_w", "res_conv1_bn_b", "res2_0_branch1_bn_s", "res5_2_branch2c_w"} <= blobs.keys()
    expected = {f"backbone.{name}": value for name, value in expected.items()}
    check_loaded(tmp_path / "R-50.pkl", blobs, model, expected)


def older(name):
    """Return a parameter's name in the first published checkpoints."""
    name = name.replace("sem_seg_head.pixel_decoder.", "sem_seg_head.")
    return name.replace(".query_feat.", ".static_query.")


@pytest.mark.parametrize("file", ["old.pth", "old.pkl"])
def test_the_checkpointer_reads_a_checkpoint_with_older_names(models, tmp_path, file):
    ours, theirs = models
    weights = {older(name): value for name, value in ours.state_dict().items()}
    assert not weights.keys() >= ours.state_dict().keys()
    content = {"model": weights}
    if file.endswith(".pkl"):  # as in the zoo, where names are matched by their ends
        arrays = {name: value.numpy() for name, value in weights.items()}
        content = {"model": arrays, "__author__": "third_party", "matching_heuristics": True}
    check_loaded(tmp_path / file, content, theirs, ours.state_dict())


def test_the_standalone_host_reads_a_checkpoint_of_detectron2s(models, tmp_path):
    ours, theirs = models
    DetectionCheckpointer(theirs, str(tmp_path)).save("model")
    saved = torch.load(tmp_path / "model.pth", weights_only=True)["model"]
    assert ours.load_state_dict(saved).missing_keys == []
