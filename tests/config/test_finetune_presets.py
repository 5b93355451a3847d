"""The fine-tuning presets: the published model that each starts from, and a run on a custom dataset."""

import logging

import pytest
import torch
from tiny_runs import OPTIONS, restored_catalogs, restored_log, tiny_shapes, train_resolved

from mask2former.config import config_from_text, load_config
from mask2former.data import register_coco_panoptic
from mask2former.data.datasets.shapes import write_shapes
from mask2former.data.errors import DatasetError
from mask2former.engine.build import build_model
from mask2former.modeling.mask_former import build_mask_former
from mask2former.tools.train import main
from mask2former.weights.model_zoo import model_of_config

__all__ = ["restored_catalogs", "restored_log", "tiny_shapes"]

STARTS = {  # preset -> the published config whose weights it starts from
    "finetune/panoptic_R50.yaml": "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml",
    "finetune/instance_R50.yaml": "coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml",
    "finetune/semantic_R50.yaml": "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml",
}


def shapes_of(name):
    with torch.device("meta"):
        model = build_mask_former(load_config(name))
    return {key: tensor.shape for key, tensor in model.state_dict().items()}


@pytest.mark.parametrize(("preset", "published"), STARTS.items())
def test_a_preset_fits_the_published_weights_but_for_the_classes(preset, published):
    assert model_of_config(published).weights == load_config(preset).MODEL.WEIGHTS
    found, expected = shapes_of(preset), shapes_of(published)
    assert found.keys() == expected.keys()
    differing = {key for key in found if found[key] != expected[key]}
    classes = {f"sem_seg_head.predictor.class_embed.{name}" for name in ("weight", "bias")}
    assert differing <= classes | {"criterion.empty_weight"}


@pytest.mark.parametrize("preset", STARTS)
def test_a_preset_needs_data(preset):
    cfg = load_config(preset, ["MODEL.WEIGHTS", "", *(part for item in OPTIONS.items() for part in item)])
    with pytest.raises(DatasetError, match=r"nothing to train on: DATASETS\.TRAIN is empty"):
        train_resolved(cfg)


def test_a_preset_trains_on_a_custom_dataset(tiny_shapes, tmp_path, caplog):
    root = tiny_shapes / "shapes"
    places = (root / "train", root / "panoptic_train", root / "annotations/panoptic_train.json")
    register_coco_panoptic("own", {}, *places)
    tiny = {key: value for key, value in OPTIONS.items() if not key.startswith("SOLVER.")}
    tiny |= {"DATASETS.TRAIN": ("own",), "OUTPUT_DIR": str(tmp_path), "SOLVER.EPOCHS": 4}
    tiny |= {"MODEL.WEIGHTS": "", "TEST.EVAL_PERIOD": 0}
    cfg = load_config("finetune/panoptic_R50.yaml", [part for item in tiny.items() for part in item])
    published = cfg.clone()
    published.DATASETS.TRAIN = ()
    cfg.MODEL.WEIGHTS = str(tmp_path / "published.pth")
    torch.save({"model": build_model(published).state_dict()}, cfg.MODEL.WEIGHTS)
    with caplog.at_level(logging.INFO, "mask2former"):
        train_resolved(cfg)
    assert "re-initialized: class head (133 -> 5 classes)" in caplog.text
    done = config_from_text((tmp_path / "config.yaml").read_text(), "written").SOLVER
    assert (done.MAX_ITER, done.IMS_PER_BATCH, done.ACCUMULATION_STEPS) == (2, 16, 8)  # 24 images


def options(**changes):
    """Return a tiny model's `KEY VALUE ...`; queries, schedule and workers stay those of the preset."""
    kept = ("SOLVER.", "DATALOADER.", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES")
    tiny = {key: value for key, value in OPTIONS.items() if not key.startswith(kept)}
    tiny |= {key.replace("__", "."): value for key, value in changes.items()}
    return [str(part) for item in tiny.items() for part in item]


def test_three_images_train_without_a_warning(tmp_path, recwarn):
    root = write_shapes(tmp_path, {"train": 3, "val": 1})
    torch.manual_seed(0)
    published = load_config("finetune/instance_R50.yaml", options())
    torch.save({"model": build_model(published).state_dict()}, tmp_path / "published.pth")
    flags = ["--config-file", "finetune/instance_R50.yaml"]
    for split in ("train", "val"):
        annotations = root / f"annotations/instances_{split}.json"
        flags += [f"--{split}-images", str(root / split), f"--{split}-annotations", str(annotations)]
    weights, folder = tmp_path / "published.pth", tmp_path / "run"
    assert main([*flags, *options(MODEL__WEIGHTS=weights, OUTPUT_DIR=folder)]) == 0
    log = (folder / "log.txt").read_text()
    assert "re-initialized: class head (80 -> 3 classes)" in log and "saved" in log
    assert "WARNING" not in log and not [str(warning.message) for warning in recwarn]


def test_weights_that_are_not_there_are_an_error_before_the_data_is_read(tmp_path, capsys):
    flags = ["--config-file", "finetune/instance_R50.yaml", "--train-images", "x", "--train-annotations", "y"]
    for weights, reason in (("x.pkl", "no such file"), ("http://127.0.0.1:1/x.pkl", "cannot be downloaded")):
        assert main([*flags, "MODEL.WEIGHTS", weights, "OUTPUT_DIR", str(tmp_path)]) == 1
        assert f"error: {weights}: {reason}" in capsys.readouterr().err
