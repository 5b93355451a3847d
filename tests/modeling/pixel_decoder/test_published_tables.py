"""Rows of the paper's tables about pixel decoders: their configs and parameters."""

import pytest
import torch

from mask2former.config import load_config, resolve_config_file
from mask2former.modeling.mask_former import build_mask_former

TASKS = ("coco_instance", "coco_panoptic", "ade20k_semantic")
SWIN_L_FAPN = (
    "semantic-segmentation/swin/maskformer2_swin_large_fapn_IN21k_384_bs16_160k_res640.yaml",
    "panoptic-segmentation/swin/maskformer2_swin_large_fapn_IN21k_384_bs16_160k.yaml",
    "instance-segmentation/swin/maskformer2_swin_large_fapn_IN21k_384_bs16_160k.yaml",
)


def load(file):
    return load_config(resolve_config_file(file))


def count_parameters(cfg):
    with torch.device("meta"):
        model = build_mask_former(cfg)
    return [sum(p.numel() for p in part.parameters()) for part in (model, model.sem_seg_head.pixel_decoder)]


@pytest.mark.parametrize(
    ("row", "model", "pixel_decoder"),
    [
        ("fpn", 49.76, 11.83),
        ("semantic_fpn", 53.89, 15.96),
        ("bifpn", 51.07, 13.14),
        ("fapn", 46.31, 8.38),
    ],
)
def test_parameters_of_table_4e(row, model, pixel_decoder):
    """In millions, computed independently from the layers' descriptions, for COCO's 80 classes."""
    counts = count_parameters(load(f"ablations/table4e/{row}_coco_instance.yaml"))
    assert [round(count / 1e6, 2) for count in counts] == [model, pixel_decoder]


@pytest.mark.parametrize("row", ["fpn", "semantic_fpn", "bifpn", "fapn"])
@pytest.mark.parametrize("task", TASKS)
def test_a_row_differs_from_the_r50_experiment_by_the_pixel_decoder_alone(row, task):
    dataset, kind = task.split("_")
    length = {"coco": "50ep", "ade20k": "160k"}[dataset]
    cfg = load(f"ablations/table4e/{row}_{task}.yaml")
    experiment = load(f"{dataset}/{kind}-segmentation/maskformer2_R50_bs16_{length}.yaml")
    name = cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME
    assert name != experiment.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME
    experiment.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = name
    assert cfg == experiment


@pytest.mark.parametrize("file", SWIN_L_FAPN)
def test_swin_l_fapn(file):
    cfg, experiment = load(f"ade20k/{file}"), load(f"ade20k/{file.replace('_fapn', '')}")
    experiment.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "FaPNPixelDecoder"
    assert cfg == experiment


def test_swin_l_fapn_has_the_published_parameters():
    count, _ = count_parameters(load(f"ade20k/{SWIN_L_FAPN[0]}"))
    assert round(count / 1e6, 2) == 217.23
