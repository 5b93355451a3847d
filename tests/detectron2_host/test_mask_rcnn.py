"""Detectron2's Mask R-CNN from our configs: parameters as published, and the command on our data."""

import json
import re
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from mask2former.config import load_config
from mask2former.detectron2_host.running import host_config
from mask2former.modeling.backbone.swin import SwinTransformer
from mask2former.tools.train import main

FOLDER = "comparators/mask_rcnn/mask_rcnn_"
MILLIONS = {
    "R50_bs16_36ep": 44.34,
    "R101_bs16_36ep": 63.28,
    "R50_bs64_400ep": 46.30,
    "R101_bs64_400ep": 65.29,
}
SMALL = {
    "MODEL.WEIGHTS": "",
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.SWIN.EMBED_DIM": 12,
    "MODEL.SWIN.DEPTHS": [1, 1, 1, 1],
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 8,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 16,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
    "INPUT.MIN_SIZE_TRAIN": [64],
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.IMAGE_SIZE": 64,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.BASE_LR": 0.001,
    "SOLVER.MAX_ITER": 2,
    "DATALOADER.NUM_WORKERS": 0,
    "TEST.EVAL_PERIOD": 0,
}


def config_of(name, *opts):
    file = f"{FOLDER}{name}.yaml"
    return host_config(load_config(file, ["MODEL.DEVICE", "cpu", *opts]), file, opts)


def stated_parameters():
    """Return the last column of the table in docs/detectron2.md, in millions, by config."""
    page = Path(__file__).parents[2] / "docs" / "detectron2.md"
    rows = re.findall(
        r"^\| `mask_rcnn_(\w+)\.yaml` .* \| ([\d.]+) \|$", page.read_text("utf-8"), re.MULTILINE
    )
    return {name: float(millions) for name, millions in rows}


STATED = stated_parameters()


@pytest.mark.parametrize("name", STATED)
def test_parameters_are_those_of_the_page(name):
    with torch.device("meta"):
        model = build_model(config_of(name, "MODEL.DEVICE", "meta"))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert round(count / 1e6, 2) == STATED[name]


def test_the_page_states_the_published_parameters():
    assert STATED.items() > MILLIONS.items()


@pytest.mark.parametrize("name", ["R50_bs16_36ep", "R50_bs64_400ep", "swin_tiny_bs16_36ep"])
def test_the_command_trains_resumes_and_evaluates(name, tiny_shapes, tmp_path):
    folder, data = tiny_shapes / "shapes", []
    for split in ("train", "val"):
        annotations = folder / "annotations" / f"instances_{split}.json"
        data += [f"--{split}-images", str(folder / split), f"--{split}-annotations", str(annotations)]
    values = {**SMALL, "OUTPUT_DIR": tmp_path}
    command = ["--host", "detectron2", "--config-file", f"{FOLDER}{name}.yaml", *data]
    options = [str(item) for pair in values.items() for item in pair]
    assert main([*command, *options]) == 0
    assert main([*command, "--resume", *options, "SOLVER.MAX_ITER", "3"]) == 0
    weights = str(tmp_path / "model_final.pth")
    assert main([*command, "--eval-only", *options, "MODEL.WEIGHTS", weights]) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    losses = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"}
    assert losses | {"segm/AP"} <= {key for line in lines for key in line}
    assert [line["iteration"] for line in lines if "total_loss" in line] == [1, 2]


def test_our_swin_is_below_the_pyramid():
    model = build_model(config_of("swin_tiny_bs16_36ep", "MODEL.SWIN.EMBED_DIM", 12))
    assert isinstance(model.backbone.bottom_up, SwinTransformer)


def test_the_model_has_the_classes_of_the_dataset():
    cfg = config_of("R50_bs16_36ep", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 7)
    assert build_model(cfg).roi_heads.num_classes == 7
